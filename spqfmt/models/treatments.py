"""What a file may ask to be done with a layer's input (FORMAT.md section 6), in torch."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch

from spqfmt.schemes.base import bits_from_float, float_from_bits

Treatment: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


def ratio_clamp(ratio: float, scope: str) -> dict[str, object]:
    """The record of JSQ's activation editor (equation 5): `ratio` from 0 to 0.5, `scope` tensor or token."""
    return {"kind": "ratio", "ratio": bits_from_float(ratio), "scope": scope}


def range_clamp(low: float, high: float) -> dict[str, object]:
    """The record of a clamp to fixed bounds."""
    return {"kind": "range", "low": bits_from_float(low), "high": bits_from_float(high)}


TOKEN_INT8: Mapping[str, object] = {"bits": 8, "scope": "token"}
"""The record of inputs quantized dynamically to 8 bits, one scale a token."""


def treatment(
    clamp: Mapping[str, object] | None,
    quantization: Mapping[str, object] | None,
    column_scale: torch.Tensor | None = None,
) -> Treatment | None:
    """What happens to an input by these records, clamp first; None when nothing does.

    All is computed in float32, each operation rounded once, and rounded to the input's dtype at the end.
    `column_scale` float32 [columns] are the weights' column scales, where they have some: what is quantized is the
    input times them, since integers are multiplied by integers.
    """
    if clamp is None and quantization is None:
        return None

    def treat(x: torch.Tensor) -> torch.Tensor:
        if not x.numel():
            return x
        wide = x.float()
        if clamp is not None:
            wide = _clamp(wide, clamp)
        if quantization is not None:
            wide = _in_place_of(wide, _rounded(wide.detach(), column_scale))
        return wide.to(x.dtype)

    return treat


def _rounded(x: torch.Tensor, column_scale: torch.Tensor | None) -> torch.Tensor:
    """What integers stand for that `x`, float32, is rounded to."""
    if column_scale is None:
        return quantize_tokens(x)[2]
    scale = column_scale.to(x.device)
    return quantize_tokens(x * scale)[2] / scale


def _in_place_of(x: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    """`rounded`; gradients go to `x` as if it had not been rounded, which has none of its own."""
    if x.requires_grad and torch.is_grad_enabled():
        given: torch.Tensor = _Straight.apply(x, rounded)  # type: ignore[no-untyped-call]
        return given
    return rounded


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
        return rounded.view_as(rounded)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0], None


def _clamp(x: torch.Tensor, record: Mapping[str, object]) -> torch.Tensor:
    """Clamp `x`, float32 and not empty."""
    if record["kind"] == "range":
        low, high = (float(float_from_bits(record[key], key)) for key in ("low", "high"))
        return x.clamp(low, high)
    ratio = float_from_bits(record["ratio"], "ratio")
    rest = float(np.float32(1) - ratio)
    if record["scope"] == "tensor":
        smallest, largest = x.min(), x.max()
    else:
        smallest, largest = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    lower = float(ratio) * largest + rest * smallest
    upper = rest * largest + float(ratio) * smallest
    return torch.minimum(torch.maximum(x, lower), upper)


def quantize_tokens(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes int8 [..., columns], scales float32 [..., 1] and the inputs that they stand for, in x's dtype.

    scale = max|x| / 127 of each token, or 1 where that is 0.
    """
    wide = x.float()
    largest = wide.abs().amax(-1, keepdim=True)
    # By a tensor: on a GPU torch multiplies by the reciprocal of a plain number.
    quotient = largest / torch.full_like(largest, 127)
    scale = torch.where(quotient > 0, quotient, 1.0)
    codes = torch.round(wide / scale).clamp_(-127, 127)
    return codes.to(torch.int8), scale, (codes * scale).to(x.dtype)
