"""Attention, rotary positions and gates of single tokens against float64, and their bits for threads and backends."""

import gc
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from spqfmt.kernels import native
from spqfmt.kernels.multiply import CodeMatrices, CodeMatrix
from spqfmt.kernels.token_step import (
    GELU_TANH,
    SILU,
    TokenLayer,
    Unchanged,
    attend,
    gate_values,
    rotate,
    step_layers,
)
from spqfmt.loaders.schemes.matrix import TYPES

DTYPES = sorted(TYPES, key=str)
# Texts, heads of keys, heads of queries for each, tokens, sizes of keys and values.
SHAPES = [
    (1, 3, 3, 100, 64, 64), (2, 2, 1, 1, 80, 48), (1, 1, 12, 65, 7, 9), (2, 1, 2, 64, 16, 130),
    (1, 1, 1, 300, 512, 512),
]  # fmt: skip


def attended(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float, n_threads: int = 1
) -> torch.Tensor:
    n_texts, n_heads, n_tokens, size = keys.shape
    y = torch.full((*q.shape[:2], values.shape[3]), float("nan"), dtype=q.dtype)
    attend(
        *(
            q.data_ptr(),
            TYPES[q.dtype],
            keys.data_ptr(),
            *keys.stride()[:3],
            values.data_ptr(),
            *values.stride()[:3],
        ),
        *(
            n_texts,
            n_heads,
            q.shape[1] // n_heads,
            n_tokens,
            size,
            values.shape[3],
            scale,
            y.data_ptr(),
            n_threads,
        ),
    )
    return y


def numbers(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    n_texts, n_heads, n_shared, n_tokens, size, value_size = shape
    random = torch.Generator().manual_seed(1)
    q = torch.randn(n_texts, n_heads * n_shared, size, generator=random) * 3
    # As a cache with room has them: tokens of all heads lie among others.
    keys = torch.randn(n_texts, n_heads, n_tokens + 5, size, generator=random)[:, :, 2 : n_tokens + 2]
    values = torch.randn(n_texts, n_heads, n_tokens + 1, value_size, generator=random)[:, :, :n_tokens]
    return q.to(dtype), keys.to(dtype), values.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_attention(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    q, keys, values = numbers(shape, dtype)
    scale = 1 / math.sqrt(shape[4])
    y = attended(q, keys, values, scale)
    wide_keys, wide_values = (t.double().repeat_interleave(shape[2], 1) for t in (keys, values))
    scores = (wide_keys @ q.double()[..., None])[..., 0] * scale
    exact = (scores.softmax(-1)[:, :, None] @ wide_values)[:, :, 0]
    assert ((y.double() - exact).abs() <= torch.finfo(dtype).eps * exact.abs() + 4e-6).all()


@pytest.mark.parametrize("scale", [300.0, 1e-6, -2.0])
def test_scores_of_any_size(scale: float) -> None:
    q, keys, values = numbers(SHAPES[0], torch.float32)
    y = attended(q, keys, values, scale)
    expected = functional.scaled_dot_product_attention(
        q[:, :, None].double(), keys.double(), values.double(), scale=scale, enable_gqa=True
    )[:, :, 0]
    assert (y - expected).abs().max() < 1e-3


def test_what_is_no_number_shows() -> None:
    q, keys, values = numbers(SHAPES[0], torch.bfloat16)
    values[0, 1, 4, 3] = float("nan")
    y = attended(q, keys, values, 0.1)
    assert y[0, 3:6, 3].isnan().all()
    assert y.isnan().sum() == 3
    keys[0, 0, 7, 7] = float("nan")
    assert attended(q, keys, values, 0.1)[0, :3].isnan().all()


def test_bits_are_the_same_for_threads_and_backends() -> None:
    q, keys, values = numbers((2, 4, 5, 400, 40, 24), torch.bfloat16)
    x, up = torch.randn(1000).bfloat16() * 4, torch.randn(1000).bfloat16()
    expected = attended(q, keys, values, 0.3)
    before, gates = native.active_kernels(), []
    try:
        for name in native.available_kernels():
            native.select_kernels(name)
            for n_threads in (1, 3):
                assert torch.equal(attended(q, keys, values, 0.3, n_threads), expected)
            gates.append(gated(x, up, GELU_TANH))
    finally:
        native.select_kernels(before)
    assert all(torch.equal(gate, gates[0]) for gate in gates)


def gated(x: torch.Tensor, up: torch.Tensor, form: int) -> torch.Tensor:
    y = x.clone()
    gate_values(y.data_ptr(), up.data_ptr(), TYPES[x.dtype], form, x.numel())
    return y


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", [SILU, GELU_TANH])
def test_gates(dtype: torch.dtype, form: int) -> None:
    x = torch.cat([torch.linspace(-120, 120, 997), torch.tensor([0.0, 1e-20, -1e-20])]).to(dtype)
    up = torch.randn(1000, generator=torch.Generator().manual_seed(2)).to(dtype)
    wide = x.double()
    function = functional.silu(wide) if form == SILU else functional.gelu(wide, approximate="tanh")
    exact = function * up.double()
    y = gated(x, up, form)
    assert ((y.double() - exact).abs() <= 1.1 * torch.finfo(dtype).eps * exact.abs() + 1e-6).all()
    assert gated(torch.full((3,), float("nan")), torch.ones(3), form).isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("size", "rotary"), [(64, 64), (10, 6), (8, 0)])
def test_rotary_positions(dtype: torch.dtype, size: int, rotary: int) -> None:
    x = torch.randn(2, 3, size).to(dtype)
    cos, sin = (torch.randn(2, 1, rotary).to(dtype) for _ in range(2))
    a, rest = x[..., :rotary], x[..., rotary:]
    halves = torch.cat([-a[..., rotary // 2 :], a[..., : rotary // 2]], -1)
    expected = torch.cat([a * cos + halves * sin, rest], -1)
    rotate(x.data_ptr(), TYPES[dtype], 2, 3, size, cos.data_ptr(), sin.data_ptr(), rotary)
    assert torch.equal(x, expected)


def test_what_does_not_fit_is_refused() -> None:
    x = torch.zeros(1, 1, 600)
    with pytest.raises(ValueError, match="more numbers than attention takes"):
        attended(x, x[:, None], x[:, None], 1.0)
    with pytest.raises(ValueError, match="nothing to attend to"):
        attended(x[..., :8], x[:, None, :0, :8], x[:, None, :0, :8], 1.0)
    with pytest.raises(ValueError, match="odd number"):
        rotate(x.data_ptr(), 0, 1, 1, 8, x.data_ptr(), x.data_ptr(), 7)
    with pytest.raises(ValueError, match="unknown form"):
        gate_values(x.data_ptr(), x.data_ptr(), 0, 2, 8)


def test_things_of_python_are_as_they_were_or_not() -> None:
    class Kind:
        pass

    class Other:
        pass

    one, value, tensor = Kind(), object(), torch.zeros(4)
    owner: dict[str, Any] = {"child": value, "hooks": {}}
    known = Unchanged(
        same=[(owner, "child", value), (owner, "forward", None)],
        empty=[(owner, "hooks")],
        kinds=[(one, Kind)],
        tensors=[(tensor, tensor.data_ptr())],
    )

    def changed(change: Callable[[], Any], back: Callable[[], Any]) -> bool:
        assert known.is_so()
        change()
        seen = known.is_so()
        back()
        return not seen

    own = tensor.data
    assert changed(lambda: owner.update(child=object()), lambda: owner.update(child=value))
    assert changed(lambda: owner.pop("child"), lambda: owner.update(child=value))
    assert changed(lambda: owner.update(forward=1), lambda: owner.pop("forward"))
    assert changed(lambda: owner["hooks"].update(a=1), owner["hooks"].clear)
    assert changed(lambda: owner.update(hooks={1: 2}), lambda: owner.update(hooks={}))
    assert changed(lambda: setattr(one, "__class__", Other), lambda: setattr(one, "__class__", Kind))
    assert changed(lambda: setattr(tensor, "data", torch.ones(4)), lambda: setattr(tensor, "data", own))
    assert known.is_so()
    assert {id(one), id(owner), id(tensor)} <= set(map(id, gc.get_referents(known)))


def test_layers_say_what_does_not_fit() -> None:
    def matrices(*shapes: tuple[int, int]) -> Any:
        return CodeMatrices(
            [
                (CodeMatrix(shape, "i8", row=np.ones(shape[0], np.float32)), np.zeros(shape, np.uint8))
                for shape in shapes
            ]
        )._native

    def layer(**changed: Any) -> Any:
        sets = {
            "inputs": [(8, 8), (4, 8), (4, 8)],
            "output": [(8, 8)],
            "gates": [(6, 8)] * 2,
            "down": [(8, 6)],
        }
        products = tuple(
            (matrices(*shapes), (0, 0) * len(shapes), False) for shapes in (sets | changed).values()
        )
        return TokenLayer(
            norms=(None,) * 6,
            norms_heads=False,
            products=products,
            gate=changed.get("gate", SILU),
            n_heads=1,
            n_shared=2,
            key_size=4,
            value_size=4,
            scale=0.5,
            rotary=4,
        )

    own = layer()
    for changed in (
        {"inputs": [(8, 8), (4, 8)]},
        {"inputs": [(8, 8), (8, 8), (4, 8)]},
        {"output": [(6, 8)]},
        {"gates": [(6, 8), (5, 8)]},
        {"down": [(8, 7)]},
    ):
        with pytest.raises(ValueError, match="do not fit together"):
            layer(**changed)
    with pytest.raises(ValueError, match="no room"):
        step_layers([own], 0, 0, 1, 0, 0, [0, 0, 3, 3], 0, [0], 1)
    with pytest.raises(ValueError, match="four numbers"):
        step_layers([own], 0, 0, 1, 0, 0, [0, 0, 3], 0, [0], 1)
    with pytest.raises(RuntimeError, match="bad_cast"):
        step_layers([object()], 0, 0, 1, 0, 0, [0, 0, 3, 2], 0, [0], 1)
