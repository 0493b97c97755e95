"""Numbers of groups: a scale, zero point or minimum for each, direct or as codes of a second level (FORMAT.md 5.5)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from spqfmt.codecs.elements import Elements
from spqfmt.errors import CorruptError
from spqfmt.kernels.multiply import GroupNumbers
from spqfmt.records import TensorRecord
from spqfmt.schemes.base import Fetch, Float32, Roles, StreamData, check_int, parameter_int
from spqfmt.schemes.floats import overflow_allowed, small_float_values, widen
from spqfmt.schemes.sides import Sides
from spqfmt.schemes.tiles import Channels, runs
from spqfmt.wire import DTYPES, SMALL_FLOATS

FLOAT_DTYPES = ("f32", "f16", "bf16")
LEVELED_DTYPES = ("u2", "u4", "u8")
"""Dtypes of codes that may be numbers of levels."""
_SCALE_FLOATS = ("f8_e4m3", "f8_e8m0")
_SPARSE = 8
"""Where one line of so many is wanted, those between are read with it: each run of lines is a read of its own."""
DIRECT: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "scale": ("scales", (*FLOAT_DTYPES, *_SCALE_FLOATS)),
    "zero_point": ("zero_points", (*FLOAT_DTYPES, *LEVELED_DTYPES)),
    "minimum": ("minimums", FLOAT_DTYPES),
}
"""For each kind of value the role of the stream that holds it, and that stream's dtypes."""


def group_roles(kind: str) -> tuple[str, ...]:
    """All roles of one kind of value, in their order."""
    second = ("codes", "levels", "steps", "zeros", "minimums")
    return (DIRECT[kind][0], *(f"{kind}_{part}" for part in second))


ROLES = tuple(role for kind in DIRECT for role in group_roles(kind))
"""Roles of the streams that numbers of groups are stored in, in their order."""


@dataclass(frozen=True)
class GroupValues:
    """One value for each group, [lines, groups]: direct, or codes with steps for each supergroup.

    Codes may be numbers of `levels`, and come with `zeros` before the multiplication or `minimums` after it.
    """

    values: Elements
    dtype: str
    steps: Elements | None = None
    zeros: Elements | None = None
    steps_dtype: str = "f16"
    zeros_dtype: str = "f16"
    levels: Elements | None = None
    minimums: Elements | None = None
    levels_dtype: str = "f32"
    minimums_dtype: str = "f32"

    def encode(self, kind: str) -> tuple[StreamData, ...]:
        """Streams for `kind` scale, zero_point or minimum."""
        flat = np.ascontiguousarray(self.values).reshape(-1)
        if self.steps is None:
            return (StreamData(DIRECT[kind][0], self.dtype, flat),)
        parts = (
            ("levels", self.levels, self.levels_dtype),
            ("steps", self.steps, self.steps_dtype),
            ("zeros", self.zeros, self.zeros_dtype),
            ("minimums", self.minimums, self.minimums_dtype),
        )
        more = (StreamData(f"{kind}_{part}", d, v.reshape(-1)) for part, v, d in parts if v is not None)
        return (StreamData(f"{kind}_codes", self.dtype, flat), *more)

    def to_float32(self, supergroup: tuple[int, int] | None, skipped: tuple[int, int] = (0, 0)) -> Float32:
        """What the groups' values are, [lines, groups].

        `skipped`: lines and groups of the first tile before those of `values`.
        """
        if self.levels is None:
            values = widen(self.values, self.dtype)
        else:
            values = widen(self.levels, self.levels_dtype)[self.values]
        if self.steps is None or supergroup is None:
            return values

        def spread(tiles: Elements, dtype: str) -> Float32:
            return _spread(widen(tiles, dtype), supergroup, values.shape, skipped)

        with overflow_allowed():
            if self.zeros is not None:
                values = values - spread(self.zeros, self.zeros_dtype)
            values = spread(self.steps, self.steps_dtype) * values
            return values if self.minimums is None else values - spread(self.minimums, self.minimums_dtype)


def _spread(
    tiles: Float32, supergroup: tuple[int, int], shape: Sequence[int], skipped: tuple[int, int]
) -> Float32:
    line_tile, group_tile = (
        np.arange(first, first + n) // size for first, n, size in zip(skipped, shape, supergroup, strict=True)
    )
    return tiles[line_tile[:, None], group_tile]


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
        lines = np.asarray(lines_of(self._record, rows)).astype(np.int64)
        ascending = np.unique(lines)
        span = range(int(ascending[0]), int(ascending[-1]) + 1)
        if len(span) <= _SPARSE * ascending.size:
            return self._chosen([span], groups, lines - span.start)
        return self._chosen(list(runs(ascending)), groups, np.searchsorted(ascending, lines))

    def _read(self, rows: range, groups: range) -> list[Float32 | None]:
        lines = lines_of(self._record, rows)
        if isinstance(lines, range):
            return self._of_lines(lines, groups)
        span = range(int(lines[0]), int(lines[-1]) + 1)
        return self._chosen([span], groups, lines.astype(np.int64) - span.start)

    def _chosen(self, parts: list[range], groups: range, at: NDArray[np.int64]) -> list[Float32 | None]:
        """Take lines `at` of those of some runs, put together."""
        by_kind = zip(*(self._of_lines(part, groups) for part in parts), strict=True)
        found = [[values for values in of_kind if values is not None] for of_kind in by_kind]
        return [np.concatenate(of_kind)[at] if of_kind else None for of_kind in found]

    def _of_lines(self, lines: range, groups: range) -> list[Float32 | None]:
        return [
            read_values(self._record, self._fetch, kind, group_size=self._size, lines=lines, groups=groups)
            for kind in DIRECT
        ]


def supergroup_of(record: TensorRecord) -> tuple[int, int] | None:
    """Lines and groups that share a step, where values are codes themselves. Raises CorruptError."""
    value = record.parameters.get("supergroup")
    if value is None:
        return None
    if not isinstance(value, dict):
        raise CorruptError(f"tensor {record.name!r}: supergroup is not an object")
    rows, groups = (check_int(value.get(key), "supergroup", 1) for key in ("rows", "groups"))
    return rows, groups


def group_rows_of(record: TensorRecord) -> int:
    """How many rows a group's tile has. Raises CorruptError."""
    return parameter_int(record, "group_rows", 1) if "group_rows" in record.parameters else 1


def n_lines(record: TensorRecord) -> int:
    """Lines of groups of the whole tensor: tiles begin anew in each stacked matrix."""
    rows, _ = record.matrix_shape
    return rows // record.stacked_rows * -(-record.stacked_rows // group_rows_of(record))


def lines_of(record: TensorRecord, rows: Channels) -> Channels:
    """The line of each of these rows."""
    size = group_rows_of(record)
    if size == 1:
        return rows
    numbers = np.arange(rows.start, rows.stop) if isinstance(rows, range) else rows.astype(np.int64)
    matrix, row = np.divmod(numbers, record.stacked_rows)
    lines: NDArray[np.unsignedinteger] = (matrix * -(-record.stacked_rows // size) + row // size).astype(
        np.uint64
    )
    return lines


def check_values(roles: Roles, kind: str, n: int, tiles: int) -> str:
    """How one kind of value is given: "direct", "level2" or "" for not at all. Raises CorruptError."""

    def broken(why: str) -> CorruptError:
        return CorruptError(f"tensor {roles.record.name!r}: {kind} {why}")

    direct = roles.optional(*DIRECT[kind], n)
    small = _SCALE_FLOATS if kind == "scale" else ()
    codes = roles.optional(f"{kind}_codes", (*LEVELED_DTYPES, "i8", *small), n)
    n_levels = 0 if codes is None else 1 << DTYPES[codes.dtype].bits
    levels = roles.optional(f"{kind}_levels", FLOAT_DTYPES, n_levels)
    steps, zeros, minimums = (
        roles.optional(f"{kind}_{part}", FLOAT_DTYPES, tiles) for part in ("steps", "zeros", "minimums")
    )
    if (codes is None) != (steps is None) or (codes is None and (zeros or minimums or levels)):
        raise broken("lacks codes or steps")
    if direct is not None and codes is not None:
        raise broken("is given twice")
    if zeros is not None and minimums is not None:
        raise broken("has zeros and minimums")
    if levels is not None and codes is not None and codes.dtype not in LEVELED_DTYPES:
        raise broken(f"has levels for codes of {codes.dtype}")
    return "direct" if direct is not None else "level2" if codes is not None else ""


def read_values(
    record: TensorRecord, fetch: Fetch, kind: str, group_size: int, lines: range, groups: range | None = None
) -> Float32 | None:
    """Scale, zero_point or minimum (`kind`) of each group, float32 [lines, groups]; None where there is none.

    `groups`: of all of them, or of some in a single line.
    """
    n_groups = -(-record.matrix_shape[1] // group_size)
    groups = range(n_groups) if groups is None else groups

    def part(role: str, lines: range, width: int, columns: range) -> Elements:
        at = lines.start * width
        end = at + columns.stop if len(lines) == 1 else lines.stop * width
        return fetch(role, at + columns.start, end).reshape(len(lines), -1)

    direct = record.by_role.get(DIRECT[kind][0])
    if direct is not None:
        return GroupValues(part(direct.role, lines, n_groups, groups), direct.dtype).to_float32(None)
    codes = record.by_role.get(f"{kind}_codes")
    supergroup = supergroup_of(record)
    if codes is None or supergroup is None:
        return None
    line_tiles, group_tiles = (
        range(some.start // size, -(-some.stop // size))
        for some, size in zip((lines, groups), supergroup, strict=True)
    )
    width = -(-n_groups // supergroup[1])
    if len(lines) > 1:
        # A stream is read from one place to another: of several lines that is all of each.
        group_tiles = range(width)
    of_codes = part(codes.role, lines, n_groups, groups)

    def second(name: str) -> tuple[Elements | None, str]:
        stream = record.by_role.get(f"{kind}_{name}")
        if stream is None:
            return None, "f32"
        whole = name == "levels"
        return fetch(stream.role) if whole else part(
            stream.role, line_tiles, width, group_tiles
        ), stream.dtype

    elements, dtypes = zip(*map(second, ("steps", "zeros", "levels", "minimums")), strict=True)
    level2 = GroupValues(of_codes, codes.dtype, *elements[:2], *dtypes[:2], *elements[2:], *dtypes[2:])
    skipped = lines.start - line_tiles.start * supergroup[0], groups.start - group_tiles.start * supergroup[1]
    return level2.to_float32(supergroup, skipped)


def kinds_of(record: TensorRecord) -> list[str]:
    """Which of scale, zero_point and minimum a tensor has."""
    return [
        k for k, (direct, _) in DIRECT.items() if direct in record.by_role or f"{k}_codes" in record.by_role
    ]


@dataclass
class GroupedSides(Sides):
    """`groups`: streams of ROLES as numpy carries them.

    Where rows are stored in another order they are values by kind instead, float32 [rows, groups]. `tables`: what
    elements that are numbers of levels stand for, by the role of the levels: of codes float32 [2^bits], else [256].
    """

    groups: dict[str, Elements] = field(default_factory=dict)
    tables: dict[str, Float32] = field(default_factory=dict)
    group_size: int = field(kw_only=True)

    def numbers(self) -> Iterator[Elements]:
        """Give all numbers of the groups, an array for each kind, and tables."""
        yield from self.groups.values()
        yield from self.tables.values()

    @property
    def values_of_codes(self) -> Float32 | None:
        """What each code stands for, float32 [2^bits]; None where codes are integers."""
        dtype = self.record.by_role["codes"].dtype
        return small_float_values(dtype) if dtype in SMALL_FLOATS else self.tables.get("levels")

    @property
    def group_rows(self) -> tuple[int, int]:
        """Rows of a line of `group_numbers`, and of each matrix whose lines begin anew."""
        rows, size = self.record.stacked_rows, group_rows_of(self.record)
        # A tile may be larger than the matrix; kernels on devices count in int32.
        return (1 if self.stored_rows is not None else min(size, rows)), rows

    def group_numbers(self, kind: str) -> GroupNumbers | None:
        """Scale, zero_point or minimum of all lines of groups as they are held; None where there is none."""
        if kind in self.groups:  # put into the order of the stored rows already
            return GroupNumbers(self.groups[kind], "f32")
        direct, codes = DIRECT[kind][0], f"{kind}_codes"
        shape = (n_lines(self.record), -(-self.record.matrix_shape[1] // self.group_size))
        by_role = self.record.by_role
        if direct in by_role:
            dtype = by_role[direct].dtype
            return GroupNumbers(self.groups[direct].reshape(shape), dtype, table=self.table_of(direct))
        tile = supergroup_of(self.record)
        if codes not in by_role or tile is None:
            return None
        steps, zeros, minimums = f"{kind}_steps", f"{kind}_zeros", f"{kind}_minimums"
        return GroupNumbers(
            values=self.groups[codes].reshape(shape),
            dtype=by_role[codes].dtype,
            steps=self.groups[steps],
            steps_dtype=by_role[steps].dtype,
            zeros=self.groups.get(zeros),
            zeros_dtype=by_role[zeros].dtype if zeros in by_role else "f16",
            minimums=self.groups.get(minimums),
            minimums_dtype=by_role[minimums].dtype if minimums in by_role else "f16",
            tile=tile,
            table=self.table_of(codes),
        )

    def table_of(self, role: str) -> Float32 | None:
        """What the elements of a stream of ROLES stand for, float32 [256]; None where they are numbers themselves."""
        dtype = self.record.by_role[role].dtype
        if dtype in SMALL_FLOATS:
            return small_float_values(dtype)
        return self.tables.get(role.removesuffix("codes") + "levels")

    def group_values(self, kind: str, first: int, stop: int) -> Float32 | None:
        """Scale, zero_point or minimum of the groups of stored rows `first` to `stop`, float32 [rows, groups]."""
        if kind in self.groups:  # put into the order of the stored rows already
            values: Float32 = self.groups[kind][first:stop]
            return values

        def fetch(role: str, first: int = 0, stop: int | None = None) -> Elements:
            return self.groups[role][first:stop]

        return values_of_rows(self.record, fetch, kind, group_size=self.group_size, rows=range(first, stop))


def values_of_rows(
    record: TensorRecord, fetch: Fetch, kind: str, group_size: int, rows: range
) -> Float32 | None:
    """`read_values` for the groups of each of these rows, float32 [rows, groups]."""
    lines = lines_of(record, rows)
    if isinstance(lines, range):
        return read_values(record, fetch, kind, group_size=group_size, lines=lines)
    first, stop = int(lines[0]), int(lines[-1]) + 1
    values = read_values(record, fetch, kind, group_size=group_size, lines=range(first, stop))
    return None if values is None else values[lines.astype(np.int64) - first]
