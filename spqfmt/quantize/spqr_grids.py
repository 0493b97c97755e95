"""How the grids of SpQR's groups are stored: in supergroups, or each by itself where rows have too little in common."""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from spqfmt.kernels.torch_arrays import to_numpy
from spqfmt.quantize.grids import MinMax, code_dtype, fit_min_max, in_groups, ordinary_exponent, scale_values
from spqfmt.quantize.leave_one_out import fit_range
from spqfmt.quantize.supergroups import STATISTICS_BITS, SUPERGROUP_ROWS, Level2, quantize_statistics
from spqfmt.schemes.group_numbers import GroupValues

_LOST, _LOST_BESIDE = 0.25, 2.0
"""A row is lost whose error passes this part of it, and is so many times that of groups with grids of their own."""
_SPREAD = 2.0**-60
"""Rows so much smaller than the largest one would leave float32 with it."""
_SMALLEST_ROW = 2.0**-100
"""Smaller ones have supergroups whose steps are subnormal."""


class Grids(Protocol):
    """The grids of a matrix whose rows are divided by 2^shift."""

    shift: NDArray[np.int32]
    """The exponent that each row is divided by, int32 [rows, 1]."""
    outlier_dtype: str
    fits: bool
    """Whether the dtypes hold all grids that were fitted."""

    def fit(self, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and zero point, float32 [rows], as they will be read, of one more group, float32 [rows, group]."""
        ...

    def stored(self) -> tuple[GroupValues, GroupValues, tuple[int, int] | None]:
        """Scales and zero points of all groups, and the supergroup."""
        ...


class Supergroups:
    """SpQR's own way: scales and zero points quantized to 3 bits among 16 rows of a group column."""

    def __init__(self, bits: int, shift: NDArray[np.int32], steps_dtype: str, outlier_dtype: str) -> None:
        self.shift = shift
        self.outlier_dtype = outlier_dtype
        self.fits = True
        self._bits = bits
        self._steps_dtype = steps_dtype
        self._scales: list[Level2] = []
        self._zeros: list[Level2] = []

    def fit(self, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Fit the grids of one group of columns, as `Grids.fit` says."""
        scale, zero = fit_range(weights.amin(1), weights.amax(1), self._bits)
        scales, zeros = (quantize_statistics(value, self._steps_dtype) for value in (scale, zero))
        self.fits &= scales.fits and zeros.fits
        self._scales.append(scales)
        self._zeros.append(zeros)
        return scales.values, zeros.values

    def stored(self) -> tuple[GroupValues, GroupValues, tuple[int, int] | None]:
        """Return what is written, as `Grids.stored` says."""
        factor = 2.0 ** int(self.shift[0, 0])
        return self._stack(self._scales, factor), self._stack(self._zeros, 1.0), (SUPERGROUP_ROWS, 1)

    def _stack(self, groups: list[Level2], factor: float) -> GroupValues:
        codes, steps, zeros = (
            torch.stack([getattr(group, part) for group in groups], 1) for part in ("codes", "steps", "zeros")
        )
        return GroupValues(
            values=to_numpy(codes),
            dtype=code_dtype(STATISTICS_BITS),
            steps=to_numpy(steps * factor),
            zeros=to_numpy(zeros),
            steps_dtype=self._steps_dtype,
            zeros_dtype="f16",
        )


class OwnGrids:
    """Grids as gptq has them: a scale for each group, and a whole zero point. Each row has a shift of its own."""

    outlier_dtype = "f32"
    fits = True

    def __init__(self, bits: int, shift: NDArray[np.int32]) -> None:
        self.shift = shift
        self._bits = bits
        self._grids: list[MinMax] = []

    def fit(self, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Fit the grids of one group of columns, as `Grids.fit` says.

        What is stored is fitted to the weights as they are.
        """
        grid = fit_min_max(shifted(weights, self.shift), self._bits, "f32")
        self._grids.append(grid)
        return shifted(grid.scale, -self.shift[:, 0]), grid.zero

    def stored(self) -> tuple[GroupValues, GroupValues, tuple[int, int] | None]:
        """Return what is written, as `Grids.stored` says."""
        zeros = torch.stack([grid.zero for grid in self._grids], 1).to(torch.uint8)
        scales = torch.stack([grid.scale for grid in self._grids], 1)
        return scale_values(scales, "f32"), GroupValues(to_numpy(zeros), code_dtype(self._bits)), None


def ways_to_store(matrix: torch.Tensor, bits: int) -> Iterator[Grids]:
    """What to try one after the other for `matrix`, float32 [rows, columns]: the first that fits is the one to take."""
    rows = matrix.abs().amax(1)
    largest = float(rows.max())
    exponent = ordinary_exponent(largest)
    shift = np.full((len(rows), 1), exponent, np.int32)
    if not bool(((rows > 0) & (rows < max(largest * _SPREAD, _SMALLEST_ROW))).any()):
        if not exponent:
            narrow = largest < torch.finfo(torch.float16).max / 2
            yield Supergroups(bits, shift, "f16", "f16" if narrow else "f32")
        yield Supergroups(bits, shift, "f32", "f32")
    yield OwnGrids(bits, np.frexp(rows.numpy())[1][:, None])


def loses_a_row(errors: torch.Tensor, matrix: torch.Tensor, bits: int, group_size: int) -> bool:
    """Whether grids that give these errors, float32 [rows], are far worse for a row of `matrix` than OwnGrids.

    Errors are of a row's rounding in all its columns, root of the sum of squares, over the same of its weights.
    """
    bad = errors > _LOST
    if not bad.any():
        return False
    rows = matrix[bad]
    groups = in_groups(shifted(rows, -np.frexp(rows.abs().amax(1).numpy())[1][:, None]), group_size)
    grid = fit_min_max(groups, bits, "f32")
    scale, zero = grid.scale[:, :, None], grid.zero[:, :, None]
    restored = scale * ((torch.round(groups / scale) + zero).clamp_(0, 2**bits - 1) - zero)
    own = ((groups - restored).square().sum((1, 2)) / groups.square().sum((1, 2))).sqrt()
    return bool((errors[bad] > _LOST_BESIDE * own).any())


def shifted(values: torch.Tensor, exponents: NDArray[np.int32]) -> torch.Tensor:
    """`values` times 2^exponents: exact, but for what leaves the range of float32."""
    if not exponents.any():
        return values
    return torch.from_numpy(np.ldexp(values.numpy(), exponents))
