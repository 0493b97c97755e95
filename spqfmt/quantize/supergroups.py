"""SpQR's second level: one group column's scales (or zero points), quantized in tiles of 16 rows."""

from dataclasses import dataclass

import torch

STATISTICS_BITS = 3
SUPERGROUP_ROWS = 16
_HIGHEST = float(2**STATISTICS_BITS - 1)
_MAX_ZERO = 512.0
"""A tile's zero is at most this many steps: float16 holds such numbers to within half a step."""

_STEPS = {"f16": (torch.float16, 2.0**-24, 2.0**15), "bf16": (torch.bfloat16, 2.0**-120, 2.0**120)}
"""dtype, smallest and largest step"""


@dataclass(frozen=True)
class Level2:
    """value = step * (code - zero) of its tile.

    `codes` uint8 [rows], `steps` and `zeros` [tiles] as stored, `values` float32 [rows].
    """

    codes: torch.Tensor
    steps: torch.Tensor
    zeros: torch.Tensor
    values: torch.Tensor

    @staticmethod
    def dtype_for(matrix: torch.Tensor, bits: int) -> str:
        """The dtype of the steps: f16, or bf16 for weights so small or large that they would leave f16's range."""
        largest = matrix.abs().amax(1)
        largest = largest[largest > 0]
        if not len(largest):
            return "f16"
        typical = float(largest.median()) / 2**bits / 2 ** (STATISTICS_BITS + 1)
        return "f16" if 2.0**-16 <= typical <= 2.0**10 else "bf16"


def quantize_statistics(values: torch.Tensor, dtype: str) -> Level2:
    """Quantize `values`, float32 [rows], between the minimum and maximum of each tile; the last tile holds the rest.

    `dtype`, f16 or bf16, is that of the steps, f16 that of the zeros; codes are rounded against them as stored.
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
    narrow, smallest, largest = _STEPS[dtype]
    steps = step.clamp_(smallest, largest).to(narrow)
    zeros = (-low / steps.float()).half()
    step, zero = steps.float()[:, None], zeros.float()[:, None]
    codes = torch.round(tiles / step + zero).clamp_(0, _HIGHEST)
    stored = (step * (codes - zero)).reshape(-1)[:rows]
    return Level2(codes.reshape(-1)[:rows].to(torch.uint8), steps, zeros, stored)
