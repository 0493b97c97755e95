"""SpQR's second level: one group column's scales (or zero points), quantized in tiles of 16 rows."""

from dataclasses import dataclass

import torch

from spqfmt.kernels.torch_arrays import TORCH_DTYPES

STATISTICS_BITS = 3
SUPERGROUP_ROWS = 16
_HIGHEST = float(2**STATISTICS_BITS - 1)
_MAX_ZERO = 512.0
"""A tile's zero is at most this many steps: float16 holds such numbers to within half a step."""

_STEPS = {"f16": (2.0**-24, 2.0**15), "f32": (2.0**-120, 2.0**120)}
"""Smallest and largest step."""
_STEP_ERROR = 2.0**-6
"""Relative error of a step in a dtype that holds it: what 7 codes come to stays within the half that rounding costs."""


@dataclass(frozen=True)
class Level2:
    """value = step * (code - zero) of its tile.

    `codes` uint8 [rows], `steps` and `zeros` [tiles] as stored, `values` float32 [rows].
    """

    codes: torch.Tensor
    steps: torch.Tensor
    zeros: torch.Tensor
    values: torch.Tensor
    fits: bool
    """Whether the steps' dtype holds all of them."""


def quantize_statistics(values: torch.Tensor, dtype: str) -> Level2:
    """Quantize `values`, float32 [rows], between the minimum and maximum of each tile; the last tile holds the rest.

    `dtype`, f16 or f32, is that of the steps, f16 that of the zeros; codes are rounded against them as stored.
    """
    rows = len(values)
    filled = (
        values
        if rows % SUPERGROUP_ROWS == 0
        else torch.cat([values, values[-1:].expand(-rows % SUPERGROUP_ROWS)])
    )
    tiles = filled.reshape(-1, SUPERGROUP_ROWS)
    low, high = tiles.amin(1), tiles.amax(1)
    step = torch.maximum((high - low) / _HIGHEST, torch.maximum(low.abs(), high.abs()) / _MAX_ZERO)
    smallest, largest = _STEPS[dtype]
    steps = step.clamp(smallest, largest).to(TORCH_DTYPES[dtype])
    fits = bool(((steps.float() - step).abs() <= step * _STEP_ERROR)[step > 0].all())
    zeros = (-low / steps.float()).half()
    step, zero = steps.float()[:, None], zeros.float()[:, None]
    codes = torch.round(tiles / step + zero).clamp_(0, _HIGHEST)
    stored = (step * (codes - zero)).reshape(-1)[:rows]
    return Level2(
        codes=codes.reshape(-1)[:rows].to(torch.uint8), steps=steps, zeros=zeros, values=stored, fits=fits
    )
