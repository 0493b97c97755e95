"""A packed matrix on a device: everything but its codes (FORMAT.md 5.3 to 5.6). All tensors are on one device.

Numbers of rows and columns count the matrix as stored: with a channel order by rows, `row`, group values and outliers
stand in the order of the stored rows.
"""

from dataclasses import dataclass
from typing import TypeAlias

import torch

from spqfmt.kernels.dequantize import CODES

CODE_DTYPES = CODES
"""Code dtype -> bits, signed; small floats are numbers of their levels."""


@dataclass(frozen=True, eq=False)
class DeviceGroupValues:
    """One value for each group. `values` [lines, groups]: float32, float16, bfloat16, uint8 or int8.

    With `steps` they are codes of the second level: value = step * (code - zero), or step * code - minimum, each
    operation rounded to float32, where step, zero and minimum (optional, one of them) [superrows, supercolumns] are
    those of the tile of `supergroup` (lines, groups). With `table`, float32 [256], uint8 values are numbers of those.
    """

    values: torch.Tensor
    steps: torch.Tensor | None = None
    zeros: torch.Tensor | None = None
    supergroup: tuple[int, int] = (1, 1)
    minimums: torch.Tensor | None = None
    table: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class UniformScales:
    """weight = (code * row[i]) * column[j]: float32 [rows], step times row scale, and float32 [columns] or None."""

    row: torch.Tensor
    column: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class GroupScales:
    """scale * (code - zero_point), scale * code - minimum or scale * code, by groups of `group_size` columns.

    With `levels`, float32 [2^bits], codes are numbers of those. A line of groups is `rows` rows, cut short where each
    `stacked_rows` of them end; None: where the matrix does.
    """

    group_size: int
    scale: DeviceGroupValues
    zero_point: DeviceGroupValues | None = None
    minimum: DeviceGroupValues | None = None
    levels: torch.Tensor | None = None
    rows: int = 1
    stacked_rows: int | None = None

    def __post_init__(self) -> None:
        values = [self.scale, self.zero_point, self.minimum]
        if self.zero_point is not None and self.minimum is not None:
            raise ValueError("zero points and minimums exclude each other")
        if len({v.supergroup for v in values if v is not None and v.steps is not None}) > 1:
            raise ValueError("a matrix has one kind of supergroup")


Scales: TypeAlias = UniformScales | GroupScales


@dataclass(frozen=True, eq=False)
class DeviceOutliers:
    """Weights that replace others: numbers row_begin[i] to row_begin[i + 1] - 1 are those of row i, columns ascending.

    `row_begin` int32 [rows + 1], `columns` int32, `values` float32. `changes`, float32, is what they are more than the
    weights of their codes, for products that do not see these; None where there are no such products.
    """

    row_begin: torch.Tensor
    columns: torch.Tensor
    values: torch.Tensor
    changes: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class Matrix:
    """What kernels need of a matrix beside its codes; `shape` is (rows, columns).

    Codes lie row by row, or column by column with `by_columns`. `order` and `places`: int32 [columns], only by columns:
    the column of each stored channel, and the stored channel of each column; None where they are the same.
    `permutation`: int32 [columns], only by rows: the column that each stored column goes to in `dequantize`; None
    leaves them in stored order (what a product with permuted inputs wants).
    """

    shape: tuple[int, int]
    code_dtype: str
    scales: Scales
    outliers: DeviceOutliers | None = None
    by_columns: bool = False
    order: torch.Tensor | None = None
    places: torch.Tensor | None = None
    permutation: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.by_columns and self.permutation is not None:
            raise ValueError("a matrix stored by columns is not permuted while it is dequantized")
        if self.order is not None and not self.by_columns:
            raise ValueError("rows in another order are reordered by the caller")
        if (self.order is None) != (self.places is None):
            raise ValueError("an order of columns needs the way back too")

    @property
    def n_channels(self) -> int:
        """Runs of codes: rows, or columns by `by_columns`."""
        return self.shape[1] if self.by_columns else self.shape[0]


@dataclass(frozen=True)
class DeviceFloats:
    """Weights as they are, bfloat16 row by row; `shape` is (rows, columns)."""

    shape: tuple[int, int]
