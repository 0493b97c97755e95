"""What a tensor needs besides its codes to be computed from: scales, zero points, orders, outliers.

They are small, and always decoded.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spqfmt.codecs.elements import Elements
from spqfmt.kernels.multiply import OutlierRows
from spqfmt.records import TensorRecord
from spqfmt.schemes import outliers as outlier_streams
from spqfmt.schemes.base import Scheme, Streamed
from spqfmt.schemes.codes import by_columns, read_order, reorders_rows


@dataclass
class Sides:
    """The sides that every scheme may have; a scheme's subclass adds its numbers.

    They are in the order of the rows as stored where the tensor is stored by rows, else in the matrix's.
    `order`: stored channel -> channel. `permutation`: stored column -> column.
    """

    record: TensorRecord
    order: NDArray[np.int64] | None = None
    permutation: NDArray[np.int64] | None = None
    outliers: OutlierRows | None = None

    @property
    def stored_rows(self) -> NDArray[np.int64] | None:
        """Stored row -> row; None where they are the same."""
        return self.order if reorders_rows(self.record) else None

    def numbers(self) -> Iterator[Elements]:
        """The arrays that a scheme has added."""
        return iter(())

    @property
    def n_bytes(self) -> int:
        """Memory that all arrays take, but for those about inputs that are another matrix's of a stack too."""
        permutation = self.permutation if "permutation" in self.record.by_role else None
        shared = (self.order, permutation, *(self.outliers or ()))
        return sum(array.nbytes for array in (*shared, *self.numbers()) if array is not None)

    def read_shared(self, fetch: Streamed) -> None:
        """Read orders and outliers. Raises FormatError where they break the format."""
        rows, columns = self.record.matrix_shape
        order = read_order(self.record, fetch, "channel_order", columns if by_columns(self.record) else rows)
        permutation = read_order(self.record, fetch, "permutation", columns)
        self.order = None if order is None else order.astype(np.int64)
        self.permutation = None if permutation is None else permutation.astype(np.int64)
        if "outlier_values" in self.record.by_role:
            self.outliers = _read_outliers(self.record, fetch, self.stored_rows)


class PackedScheme(Scheme):
    """A scheme whose tensors loaders compute from as they are stored; spqfmt.loaders.schemes has its products."""

    turns_columns: bool = False
    """Whether parts that are stored by columns are turned to rows when they are decoded, for the products."""

    @abstractmethod
    def whole_because(self, record: TensorRecord) -> str:
        """Why this tensor, a matrix, is decoded whole instead, in a few words; empty where it is not."""

    @abstractmethod
    def number_bytes(self, record: TensorRecord) -> int:
        """Memory of the numbers that `read_sides` adds to the shared sides, from the index alone."""

    @abstractmethod
    def read_sides(self, record: TensorRecord, fetch: Streamed) -> Sides:
        """Read and decode what a tensor has beside its codes. Raises FormatError where they break the format."""

    def share_sides(self, sides: Any, matrix: TensorRecord, first: int, stop: int) -> Sides:
        """The sides of `matrix`, rows `first` to `stop` of those that `sides` are of, in the memory of these.

        A scheme with numbers of its own adds its rows. Orders of rows cannot be shared out.
        """
        shared: Sides = replace(sides, record=matrix, outliers=outliers_in(sides.outliers, first, stop))
        return shared

    def slice_unit(self, record: TensorRecord, *, of_columns: bool) -> int:
        """A slice of rows, or of columns, begins and ends at multiples of this, or with the matrix."""
        return 1

    def slice_sizes(self, record: TensorRecord, rows: range, columns: range) -> Mapping[str, int]:
        """Elements of the streams of numbers, by role, that a slice has; of others it has all."""
        return {}

    def slice_sides(self, sides: Any, record: TensorRecord, rows: range, columns: range) -> Sides:
        """The sides of `record`, these rows and columns of what `sides` are of, in memory of their own.

        Of one of the two they are all. A scheme with numbers of its own adds its part. The channels that are cut are
        stored in their own order.
        """
        outliers = outliers_in(sides.outliers, rows.start, rows.stop)
        if outliers is not None:
            outliers = _outliers_of_columns(outliers, columns)
        return replace(sides, record=record, outliers=outliers)  # type: ignore[no-any-return]

    def side_bytes(self, record: TensorRecord, n_parts: int) -> int:
        """Memory of the sides of a tensor in so many parts, from the index alone."""
        rows, columns = record.matrix_shape
        turned = self.turns_columns and by_columns(record)
        orders = (record.by_role.get(role) for role in ("channel_order", "permutation"))
        total = 8 * (columns if turned else sum(order.n for order in orders if order is not None))
        if "outlier_values" in record.by_role:
            bounds = (rows + 1) * (n_parts if turned else 1)
            total += 8 * bounds + 8 * record.by_role["outlier_values"].n
        return total + self.number_bytes(record)


def outliers_in(outliers: OutlierRows | None, first: int, stop: int) -> OutlierRows | None:
    """Those of some rows, which are counted from 0 then; None where there are none at all."""
    if outliers is None:
        return None
    begin = outliers.row_begin[first : stop + 1]
    here = slice(int(begin[0]), int(begin[-1]))
    return OutlierRows(begin - begin[0], outliers.columns[here], outliers.values[here])


def _outliers_of_columns(outliers: OutlierRows, columns: range) -> OutlierRows:
    """Those of some columns, which are counted from 0 then, in memory of their own."""
    n_rows = outliers.row_begin.size - 1
    rows = np.repeat(np.arange(n_rows), np.diff(outliers.row_begin))
    here = (outliers.columns >= columns.start) & (outliers.columns < columns.stop)
    begin = np.searchsorted(rows[here], np.arange(n_rows + 1)).astype(np.int64)
    of_columns = outliers.columns[here] - np.uint32(columns.start)
    return OutlierRows(begin, of_columns.astype(np.uint32), outliers.values[here])


def _read_outliers(
    record: TensorRecord, fetch: Streamed, stored_rows: NDArray[np.int64] | None
) -> OutlierRows:
    n_rows, n_columns = record.matrix_shape
    found = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))]
    found += [
        (*np.divmod(band_row * n_columns + positions, n_columns), values)
        for band_row, positions, values in outlier_streams.bands(record, fetch, 0, n_rows)
    ]
    rows, columns, values = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    if stored_rows is not None:
        stored_at = np.empty(n_rows, np.int64)
        stored_at[stored_rows] = np.arange(n_rows)
        rows = stored_at[rows]
        by_row = np.argsort(rows, kind="stable")
        rows, columns, values = rows[by_row], columns[by_row], values[by_row]
    begin = np.searchsorted(rows, np.arange(n_rows + 1)).astype(np.int64)
    return OutlierRows(begin, columns.astype(np.uint32), values)
