"""Even grids for groups of weights: scale and zero point from the smallest and largest weight."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from spqfmt.kernels.torch_arrays import TORCH_DTYPES, to_numpy
from spqfmt.schemes.group_numbers import GroupValues

CODE_DTYPES = {2: "u2", 3: "u4", 4: "u4"}
"""The narrowest dtype for codes of so many bits; u8 for more."""

SCALE_DTYPES = ("f16", "bf16", "f32")
"""Dtypes of scales: those of a tensor are stored in the first that holds all of them."""

_OF_ZEROS = 2.0**-24
"""Scale of a group of zeros: any number would do, this one has a place in each of the dtypes."""
_ORDINARY = 20
"""Weights whose largest lies within so many octaves of 1 are worked on as they are."""


def code_dtype(bits: int) -> str:
    """The narrowest unsigned dtype for codes of so many bits."""
    return CODE_DTYPES.get(bits, "u8")


def in_groups(matrix: torch.Tensor, group_size: int) -> torch.Tensor:
    """`matrix` [rows, columns] as [rows, groups, group_size], the last group filled with zeros."""
    rows, columns = matrix.shape
    size = min(group_size, columns)
    return torch.nn.functional.pad(matrix, (0, -columns % size)).reshape(rows, -1, size)


@dataclass(frozen=True)
class MinMax:
    """Grids of groups: `scale` and `zero`, float32 [...], as a reader restores them; `dtype` is that of the scales."""

    scale: torch.Tensor
    zero: torch.Tensor
    dtype: str


def fit_min_max(groups: torch.Tensor, bits: int, at_least: str = "f16") -> MinMax:
    """Grids for groups [..., group]; their scales in the first dtype from `at_least` on that holds all of them.

    0 is always within the range and has a code of its own: zero points are whole numbers from 0 to 2^bits - 1.
    """
    highest = 2**bits - 1
    low, high = groups.amin(-1).clamp_(max=0), groups.amax(-1).clamp_(min=0)
    scale = covering(high - low, highest)
    scale = torch.where(scale > 0, scale, _OF_ZEROS)
    wide_enough = SCALE_DTYPES[SCALE_DTYPES.index(at_least) :]
    dtype = next(dtype for dtype in wide_enough if dtype == "f32" or holds(dtype, scale, highest))
    scale = scale.to(TORCH_DTYPES[dtype]).float()
    return MinMax(scale, torch.round(-low / scale).clamp_(0, highest), dtype)


def widest(dtypes: Iterable[str]) -> str:
    """The one that comes last among SCALE_DTYPES."""
    return max(dtypes, key=SCALE_DTYPES.index)


def covering(span: torch.Tensor, steps: int) -> torch.Tensor:
    """`span` / `steps`, float32; where that is subnormal, no step so short that the span's end is out of reach."""
    step = span / steps
    return torch.where(
        step * steps < span - step / 2, torch.nextafter(step, step.new_tensor(torch.inf)), step
    )


def holds(dtype: str, scale: torch.Tensor, highest: int) -> bool:
    """Whether no scale is so far from its place in `dtype` that code `highest` moves by more than a quarter step."""
    stored = scale.to(TORCH_DTYPES[dtype]).float()
    return bool(((stored - scale).abs() * highest <= scale.abs() / 4).all())


def ordinary_exponent(largest: float) -> int:
    """The power of two that weights are divided by where squares of them might leave float32; 0 for ordinary ones."""
    exponent = int(np.frexp(largest)[1]) if largest else 0
    return exponent if abs(exponent) > _ORDINARY else 0


def scale_values(stored: torch.Tensor, dtype: str) -> GroupValues:
    """Scales, float32 [rows, groups] that `dtype` holds, as the scheme takes them."""
    return GroupValues(to_numpy(stored.to(TORCH_DTYPES[dtype])), dtype)
