"""Numbers of groups: a scale, zero point or minimum for each, direct or as codes of a second level (FORMAT.md 5.5)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from spqfmt.codecs.elements import Elements
from spqfmt.errors import CorruptError
from spqfmt.kernels.multiply import GroupNumbers
from spqfmt.records import TensorRecord
from spqfmt.schemes.base import Fetch, Float32, StreamData, check_int
from spqfmt.schemes.floats import overflow_allowed, widen
from spqfmt.schemes.sides import Sides
from spqfmt.schemes.tiles import Channels, runs

FLOAT_DTYPES = ("f32", "f16", "bf16")
LEVEL2_DTYPES = ("u2", "u4", "u8", "i8")
DIRECT = {
    "scale": ("scales", FLOAT_DTYPES),
    "zero_point": ("zero_points", (*FLOAT_DTYPES, "u2", "u4", "u8")),
    "minimum": ("minimums", FLOAT_DTYPES),
}
ROLES = tuple(
    role
    for kind, (direct, _) in DIRECT.items()
    for role in (direct, f"{kind}_codes", f"{kind}_steps", f"{kind}_zeros")
)
"""Of the streams that numbers of groups are stored in, in their order."""


@dataclass(frozen=True)
class GroupValues:
    """One value for each group, [rows, groups]: direct, or codes with steps and zeros a supergroup."""

    values: Elements
    dtype: str
    steps: Elements | None = None
    zeros: Elements | None = None
    steps_dtype: str = "f16"
    zeros_dtype: str = "f16"

    def encode(self, kind: str) -> tuple[StreamData, ...]:
        """Streams for `kind` scale, zero_point or minimum."""
        flat = np.ascontiguousarray(self.values).reshape(-1)
        if self.steps is None:
            return (StreamData(DIRECT[kind][0], self.dtype, flat),)
        streams: tuple[StreamData, ...] = (
            StreamData(f"{kind}_codes", self.dtype, flat),
            StreamData(f"{kind}_steps", self.steps_dtype, self.steps.reshape(-1)),
        )
        if self.zeros is not None:
            streams += (StreamData(f"{kind}_zeros", self.zeros_dtype, self.zeros.reshape(-1)),)
        return streams

    def to_float32(self, supergroup: tuple[int, int] | None, skipped: tuple[int, int] = (0, 0)) -> Float32:
        """What the groups' values are, [rows, groups].

        `skipped`: rows and groups of the first tile before those of `values`.
        """
        values = widen(self.values, self.dtype)
        if self.steps is None or supergroup is None:
            return values
        with overflow_allowed():
            if self.zeros is not None:
                zeros = widen(self.zeros, self.zeros_dtype)
                values = values - _spread(zeros, supergroup, values.shape, skipped)
            steps = widen(self.steps, self.steps_dtype)
            return _spread(steps, supergroup, values.shape, skipped) * values


def _spread(
    tiles: Float32, supergroup: tuple[int, int], shape: Sequence[int], skipped: tuple[int, int]
) -> Float32:
    row_tile, group_tile = (
        np.arange(first, first + n) // size for first, n, size in zip(skipped, shape, supergroup, strict=True)
    )
    return tiles[row_tile[:, None], group_tile]


class TileGroups:
    """Scale, zero point and minimum of the groups of tiles, which lie in some rows."""

    def __init__(self, record: TensorRecord, fetch: Fetch, group_size: int, rows: range) -> None:
        self._record, self._fetch, self._size, self._first = record, fetch, group_size, rows.start
        self._groups = range(-(-record.matrix_shape[1] // group_size))
        self._of_rows: list[Float32 | None] | None = None
        if record.parameters["orientation"] == "columns":
            self._of_rows = self._read(rows, self._groups)

    def of(self, rows: Channels, columns: Channels) -> tuple[list[Float32 | None], int]:
        """Float32 [rows, groups] of each in a tile, and the size of these groups there."""
        numbers = columns if not isinstance(columns, range) else np.arange(columns.start, columns.stop)
        group = (numbers // self._size).astype(np.int64)
        if self._of_rows is not None:
            assert isinstance(rows, range)
            at = slice(rows.start - self._first, rows.stop - self._first)
            # As many groups as columns, which may lie in another order.
            return [None if values is None else values[at, group] for values in self._of_rows], 1
        assert isinstance(columns, range)
        first, stop = int(group[0]), int(group[-1]) + 1
        values = self._of(rows, range(first, stop) if len(rows) == 1 else self._groups)
        if len(rows) > 1:
            values = [None if part is None else part[:, first:stop] for part in values]
        if columns.start % self._size == 0 or stop - first == 1:
            return values, min(self._size, len(columns))
        return [None if part is None else part[:, group - first] for part in values], 1

    def _of(self, rows: Channels, groups: range) -> list[Float32 | None]:
        if isinstance(rows, range):
            return self._read(rows, groups)
        ascending = np.sort(rows)
        parts = [self._read(run, groups) for run in runs(ascending)]
        at_rows = np.searchsorted(ascending, rows)
        found: list[Float32 | None] = []
        for kind in range(len(DIRECT)):
            of_kind = [values for part in parts if (values := part[kind]) is not None]
            found.append(np.concatenate(of_kind)[at_rows] if of_kind else None)
        return found

    def _read(self, rows: range, groups: range) -> list[Float32 | None]:
        return [read_values(self._record, self._fetch, kind, self._size, rows, groups) for kind in DIRECT]


def supergroup_of(record: TensorRecord) -> tuple[int, int] | None:
    """Rows and groups that share a step, where values are codes themselves. Raises CorruptError."""
    value = record.parameters.get("supergroup")
    if value is None:
        return None
    if not isinstance(value, dict):
        raise CorruptError(f"tensor {record.name!r}: supergroup is not an object")
    rows, groups = (check_int(value.get(key), "supergroup", 1) for key in ("rows", "groups"))
    return rows, groups


def read_values(
    record: TensorRecord, fetch: Fetch, kind: str, group_size: int, rows: range, groups: range | None = None
) -> Float32 | None:
    """Scale, zero_point or minimum (`kind`) of each group, float32 [rows, groups]; None where there is none.

    `groups`: of all of them, or of some in a single row.
    """
    n_groups = -(-record.matrix_shape[1] // group_size)
    groups = range(n_groups) if groups is None else groups

    def part(role: str, rows: range, width: int, columns: range) -> Elements:
        at = rows.start * width
        end = at + columns.stop if len(rows) == 1 else rows.stop * width
        return fetch(role, at + columns.start, end).reshape(len(rows), -1)

    direct = record.by_role.get(DIRECT[kind][0])
    if direct is not None:
        return GroupValues(part(direct.role, rows, n_groups, groups), direct.dtype).to_float32(None)
    codes = record.by_role.get(f"{kind}_codes")
    supergroup = supergroup_of(record)
    if codes is None or supergroup is None:
        return None
    row_tiles, group_tiles = (
        range(some.start // size, -(-some.stop // size))
        for some, size in zip((rows, groups), supergroup, strict=True)
    )
    width = -(-n_groups // supergroup[1])
    if len(rows) > 1:
        group_tiles = range(width)
    steps, zeros = record.by_role[f"{kind}_steps"], record.by_role.get(f"{kind}_zeros")
    level2 = GroupValues(
        part(codes.role, rows, n_groups, groups),
        codes.dtype,
        part(steps.role, row_tiles, width, group_tiles),
        None if zeros is None else part(zeros.role, row_tiles, width, group_tiles),
        steps.dtype,
        "f16" if zeros is None else zeros.dtype,
    )
    skipped = rows.start - row_tiles.start * supergroup[0], groups.start - group_tiles.start * supergroup[1]
    return level2.to_float32(supergroup, skipped)


def kinds_of(record: TensorRecord) -> list[str]:
    """Which of scale, zero_point and minimum a tensor has."""
    return [
        k for k, (direct, _) in DIRECT.items() if direct in record.by_role or f"{k}_codes" in record.by_role
    ]


@dataclass
class GroupedSides(Sides):
    """`groups`: streams of ROLES as numpy carries them.

    Where rows are stored in another order they are values by kind instead, float32 [rows, groups].
    """

    groups: dict[str, Elements] = field(default_factory=dict)
    group_size: int = field(kw_only=True)

    def numbers(self) -> Iterator[Elements]:
        """All of the groups."""
        return iter(self.groups.values())

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
