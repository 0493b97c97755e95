"""What a file may ask to be done with a layer's input (FORMAT.md section 6), in torch."""

from collections.abc import Callable, Mapping
from typing import TypeAlias

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

    `column_scale` float32 [columns] are the weights' column scales, where they have some: what is quantized is the
    input times them, since integers are multiplied by integers.
    """
    if clamp is None and quantization is None:
        return None

    def treat(x: torch.Tensor) -> torch.Tensor:
        if clamp is not None:
            x = _clamp(x, clamp)
        if quantization is None:
            return x
        if column_scale is None:
            return quantize_tokens(x)[2]
        scale = column_scale.to(x.device)
        return (quantize_tokens(x.float() * scale)[2] / scale).to(x.dtype)

    return treat


def _clamp(x: torch.Tensor, record: Mapping[str, object]) -> torch.Tensor:
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

    scale = max|x| / 127 of each token; a token of zeros has scale 1.
    """
    wide = x.float()
    largest = wide.abs().amax(-1, keepdim=True)
    scale = torch.where(largest > 0, largest / 127, 1.0)
    codes = torch.round(wide / scale).clamp_(-127, 127)
    return codes.to(torch.int8), scale, (codes * scale).to(x.dtype)
