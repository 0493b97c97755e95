"""Inputs of layers as FORMAT.md section 6 has them: binary32 throughout, and one rounding at the end."""

from typing import Any

import numpy as np
import pytest
import torch

from spqfmt.models.treatments import TOKEN_INT8, quantize_tokens, range_clamp, ratio_clamp, treatment
from spqfmt.schemes.base import float_from_bits

CLAMPS: list[dict[str, object] | None] = [
    None,
    range_clamp(-0.7, 0.301),
    *(ratio_clamp(r, scope) for r in (0.0, 0.1, 0.35, 0.5) for scope in ("tensor", "token")),
]


def by_the_text(
    x: np.ndarray[Any, np.dtype[np.float32]],
    clamp: dict[str, Any] | None,
    column: np.ndarray[Any, np.dtype[np.float32]] | None,
    *,
    quantized: bool,
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The formulas, operation by operation, on numpy's float32."""
    if clamp is not None:
        if clamp["kind"] == "range":
            low, high = (float_from_bits(clamp[key], key) for key in ("low", "high"))
        else:
            r, one = float_from_bits(clamp["ratio"], "ratio"), np.float32(1)
            axis = None if clamp["scope"] == "tensor" else -1
            most, least = x.max(axis=axis, keepdims=True), x.min(axis=axis, keepdims=True)
            low = r * most + (one - r) * least
            high = (one - r) * most + r * least
        x = np.minimum(high, np.maximum(x, low))
    if quantized:
        scaled = x if column is None else x * column
        s = np.abs(scaled).max(-1, keepdims=True) / np.float32(127)
        s = np.where(s == 0, np.float32(1), s)
        stands_for = np.clip(np.rint(scaled / s), -127, 127) * s
        x = stands_for if column is None else stands_for / column
    assert x.dtype == np.float32
    return x


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("has_column", [False, True])
@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("clamp", CLAMPS)
def test_each_operation_is_one_of_binary32_and_the_last_one_rounds_to_the_inputs_dtype(
    clamp: dict[str, Any] | None, quantized: bool, has_column: bool, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(3)
    x = (torch.randn(7, 33, generator=generator) * 3).to(dtype)
    x[2] = 0
    column = torch.rand(33, generator=generator) + 0.5 if has_column else None
    treat = treatment(clamp, TOKEN_INT8 if quantized else None, column)
    if treat is None:
        return
    expected = by_the_text(
        x.float().numpy(), clamp, None if column is None else column.numpy(), quantized=quantized
    )
    found = treat(x)
    assert found.dtype == dtype
    assert torch.equal(found, torch.from_numpy(expected).to(dtype))


def test_a_scale_that_rounds_to_nothing_is_one() -> None:
    tiny = torch.tensor([[1e-45, 0.0, -1e-45], [0.0, 0.0, 0.0]])
    codes, scale, values = quantize_tokens(tiny)
    assert scale.tolist() == [[1.0], [1.0]]
    assert not codes.any()
    assert not values.any()


@pytest.mark.parametrize("clamp", CLAMPS[1:])
def test_no_tokens_are_none_afterwards(clamp: dict[str, Any]) -> None:
    treat = treatment(clamp, TOKEN_INT8)
    assert treat is not None
    assert treat(torch.empty(0, 5)).shape == (0, 5)
