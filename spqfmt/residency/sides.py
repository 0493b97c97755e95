"""What a packed tensor needs besides its codes: scales, zero points, orders, outliers. Small, and always decoded."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from spqfmt.codecs.elements import CARRIERS, Elements
from spqfmt.container.fetch import StreamFetch
from spqfmt.container.reader import Reader
from spqfmt.kernels.multiply import GroupNumbers, OutlierRows
from spqfmt.records import TensorRecord
from spqfmt.residency.parts import Part, by_columns, is_turned
from spqfmt.schemes import outliers as outlier_streams
from spqfmt.schemes.base import Fetch, Float32, Streamed, float_from_bits, parameter_int
from spqfmt.schemes.codes import read_order
from spqfmt.schemes.group_numbers import DIRECT, read_values, supergroup_of
from spqfmt.schemes.uniform import read_scale

GROUP_ROLES = tuple(
    role
    for kind, (direct, _) in DIRECT.items()
    for role in (direct, f"{kind}_codes", f"{kind}_steps", f"{kind}_zeros")
)


@dataclass
class Sides:
    """Of one tensor, in the order of its rows as stored where it is stored by rows, else in the matrix's.

    `row` is step times row scale. `order`: stored channel -> channel. `permutation`: stored column -> column.
    `groups`: the grouped scheme's streams as numpy carries them; see `group_values`.
    """

    record: TensorRecord
    row: Float32 | None = None
    column: Float32 | None = None
    order: NDArray[np.int64] | None = None
    permutation: NDArray[np.int64] | None = None
    outliers: OutlierRows | None = None
    groups: dict[str, Elements] = field(default_factory=dict)
    group_size: int = 0

    @property
    def n_bytes(self) -> int:
        """Memory of all arrays."""
        arrays = [
            self.row,
            self.column,
            self.order,
            self.permutation,
            *self.groups.values(),
            *(self.outliers or ()),
        ]
        return sum(array.nbytes for array in arrays if array is not None)

    def group_numbers(self, kind: str) -> GroupNumbers | None:
        """Scale, zero_point or minimum of all groups as they are held, stored rows; None where there is none."""
        if kind in self.groups:  # put into the order of the stored rows already
            return GroupNumbers(self.groups[kind], "f32")
        direct, codes = DIRECT[kind][0], f"{kind}_codes"
        rows, columns = self.record.matrix_shape
        shape = (rows, -(-columns // self.group_size))
        by_role = self.record.by_role
        if direct in by_role:
            return GroupNumbers(self.groups[direct].reshape(shape), by_role[direct].dtype)
        tile = supergroup_of(self.record)
        if codes not in by_role or tile is None:
            return None
        steps, zeros = f"{kind}_steps", f"{kind}_zeros"
        return GroupNumbers(
            self.groups[codes].reshape(shape),
            by_role[codes].dtype,
            self.groups[steps],
            by_role[steps].dtype,
            self.groups.get(zeros),
            by_role[zeros].dtype if zeros in by_role else "f16",
            tile,
        )

    def group_values(self, kind: str, first: int, stop: int) -> Float32 | None:
        """Scale, zero_point or minimum of the groups of stored rows `first` to `stop`, float32 [rows, groups]."""
        if kind in self.groups:  # put into the order of the stored rows already
            values: Float32 = self.groups[kind][first:stop]
            return values

        def fetch(role: str, first: int = 0, stop: int | None = None) -> Elements:
            return self.groups[role][first:stop]

        return read_values(self.record, fetch, kind, self.group_size, range(first, stop))


def side_bytes(parts: Sequence[Part]) -> int:
    """What the sides of whole tensors, given by their parts, will hold; from the index alone."""
    counts = Counter(part.record.name for part in parts)
    records = {part.record.name: part.record for part in parts}
    return sum(_side_bytes(record, counts[name]) for name, record in records.items())


def _side_bytes(record: TensorRecord, n_parts: int) -> int:
    rows, columns = record.matrix_shape
    turned = is_turned(record)
    orders = sum(
        record.by_role[role].n for role in ("channel_order", "permutation") if role in record.by_role
    )
    total = 8 * (columns if turned else orders)
    if "outlier_values" in record.by_role:
        bounds = (rows + 1) * (n_parts if turned else 1)
        total += 8 * bounds + 8 * record.by_role["outlier_values"].n
    if record.scheme == "uniform":
        total += 4 * rows + (4 * columns if "column_scales" in record.by_role else 0)
    elif record.scheme == "grouped" and _reordered(record):
        groups = -(-columns // parameter_int(record, "group_size", 1))
        total += 4 * rows * groups * len(_kinds(record))
    elif record.scheme == "grouped":
        streams = [record.by_role[role] for role in GROUP_ROLES if role in record.by_role]
        total += sum(stream.n * CARRIERS[stream.dtype].itemsize for stream in streams)
    return total


def read_sides(reader: Reader, record: TensorRecord) -> Sides:
    """Read and decode them. Raises FormatError where they break the format."""

    fetch = StreamFetch(reader, record)
    sides = Sides(record)
    rows, columns = record.matrix_shape
    order = read_order(record, fetch, "channel_order", columns if by_columns(record) else rows)
    permutation = read_order(record, fetch, "permutation", columns)
    sides.order = None if order is None else order.astype(np.int64)
    sides.permutation = None if permutation is None else permutation.astype(np.int64)
    stored_rows = sides.order if _reordered(record) else None
    if record.scheme == "uniform":
        scale = read_scale(record, fetch, "row_scales", 0, None)
        step = float_from_bits(record.parameters["step"], "step")
        row = np.full(rows, step, np.float32) if scale is None else step * scale
        sides.row = row if stored_rows is None else row[stored_rows]
        sides.column = read_scale(record, fetch, "column_scales", 0, None)
    elif record.scheme == "grouped":
        _read_groups(sides, fetch, stored_rows)
    if "outlier_values" in record.by_role:
        sides.outliers = _read_outliers(record, fetch, stored_rows)
    return sides


def _reordered(record: TensorRecord) -> bool:
    return "channel_order" in record.by_role and not by_columns(record)


def _kinds(record: TensorRecord) -> list[str]:
    return [
        k for k, (direct, _) in DIRECT.items() if direct in record.by_role or f"{k}_codes" in record.by_role
    ]


def _read_groups(sides: Sides, fetch: Fetch, stored_rows: NDArray[np.int64] | None) -> None:
    record = sides.record
    sides.group_size = parameter_int(record, "group_size", 1)
    if stored_rows is None:
        sides.groups = {role: fetch(role) for role in GROUP_ROLES if role in record.by_role}
        return
    # Tiles of supergroups do not follow the stored order, so the values themselves are kept.
    for kind in _kinds(record):
        values = read_values(record, fetch, kind, sides.group_size, range(record.matrix_shape[0]))
        assert values is not None
        sides.groups[kind] = values[stored_rows]


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
