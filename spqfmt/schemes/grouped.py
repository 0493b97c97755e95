"""Scheme grouped: b-bit codes with a scale and a zero point for each group of columns (FORMAT.md 5.5)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from spqfmt.codecs.elements import Elements
from spqfmt.codecs.threads import n_threads
from spqfmt.errors import CorruptError
from spqfmt.kernels.dequantize import dequantize_grouped
from spqfmt.kernels.json_text import Wanted
from spqfmt.records import TensorRecord
from spqfmt.schemes import codes as codes_stream
from spqfmt.schemes import outliers as outlier_streams
from spqfmt.schemes import tiles
from spqfmt.schemes.base import (
    Encoded,
    Fetch,
    Float32,
    Roles,
    StreamData,
    Streamed,
    check_int,
    parameter_int,
)
from spqfmt.schemes.codes import Layout
from spqfmt.schemes.floats import overflow_allowed, widen
from spqfmt.schemes.outliers import Outliers
from spqfmt.schemes.tiles import Channels, Target, runs
from spqfmt.schemes.uniform import optional_features

CODE_DTYPES = ("u2", "u4", "u8", "i2", "i4", "i8")
FLOAT_DTYPES = ("f32", "f16", "bf16")
LEVEL2_DTYPES = ("u2", "u4", "u8", "i8")
DIRECT = {
    "scale": ("scales", FLOAT_DTYPES),
    "zero_point": ("zero_points", (*FLOAT_DTYPES, "u2", "u4", "u8")),
    "minimum": ("minimums", FLOAT_DTYPES),
}
ROLES = (
    "codes",
    "channel_order",
    "permutation",
    *(
        role
        for kind, (direct, _) in DIRECT.items()
        for role in (direct, f"{kind}_codes", f"{kind}_steps", f"{kind}_zeros")
    ),
    *outlier_streams.ROLES,
)


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


@dataclass(frozen=True)
class Grouped:
    """Codes [rows, columns] in stored column order; `zero_point` or `minimum` or neither; supergroup (rows, groups).

    `shared_permutation` names an earlier tensor of the file that holds the same permutation.
    """

    codes: Elements
    code_dtype: str
    group_size: int
    bits: int
    scale: GroupValues
    zero_point: GroupValues | None = None
    minimum: GroupValues | None = None
    supergroup: tuple[int, int] | None = None
    permutation: NDArray[np.int64] | None = None
    outliers: Outliers | None = None
    layout: Layout = field(default_factory=Layout)
    shared_permutation: str | None = None

    def encode(self) -> Encoded:
        """Streams in the order of FORMAT.md 5.5."""
        parameters, streams = self.layout.encode(self.codes, self.code_dtype)
        parameters |= {"group_size": self.group_size, "bits": self.bits}
        same_as = {}
        if self.permutation is not None:
            permutation = codes_stream.index_stream("permutation", self.permutation)
            if self.shared_permutation is None:
                streams += (permutation,)
            else:
                same_as["permutation"] = permutation, self.shared_permutation
        streams += self.scale.encode("scale")
        if self.zero_point is not None:
            streams += self.zero_point.encode("zero_point")
        if self.minimum is not None:
            streams += self.minimum.encode("minimum")
        if self.supergroup is not None:
            parameters["supergroup"] = dict(zip(("rows", "groups"), self.supergroup, strict=True))
        if self.outliers is not None and self.outliers.rows.size:
            rows, columns = self.codes.shape
            parameters["outliers"], more = self.outliers.encode((rows, columns))
            streams += more
        return Encoded("grouped", parameters, streams, same_as)

    def dequantize(self) -> Float32:
        """The weights in the matrix's own column order, float32 [rows, columns]."""
        values = [
            None if part is None else part.to_float32(self.supergroup)
            for part in (self.scale, self.zero_point, self.minimum)
        ]
        scale, zero_point, minimum = values
        assert scale is not None
        matrix = dequantize(self.codes, self.group_size, scale, zero_point, minimum)
        if self.outliers is not None:
            self.outliers.replace(matrix)
        return matrix if self.permutation is None else unpermute(matrix, self.permutation)


def dequantize(
    codes: Elements,
    group_size: int,
    scale: Float32,
    zero_point: Float32 | None,
    minimum: Float32 | None,
) -> Float32:
    """The formulas of FORMAT.md 5.5, each operation rounded once to binary32."""
    columns = codes.shape[1]

    def spread(values: Float32) -> Float32:
        return values.repeat(min(group_size, columns), 1)[:, :columns]

    matrix = codes.astype(np.float32)
    with overflow_allowed():
        if zero_point is not None:
            matrix -= spread(zero_point)
        matrix *= spread(scale)
        if minimum is not None:
            matrix -= spread(minimum)
    return matrix


def unpermute(matrix: Elements, permutation: NDArray[np.int64]) -> Elements:
    """Stored column k goes to column permutation[k]."""
    restored = np.empty_like(matrix)
    restored[:, permutation] = matrix
    return restored


class GroupedScheme:
    """Reads grouped tensors."""

    name = "grouped"
    roles = ROLES
    parameters: Mapping[str, Wanted] = {
        "group_size": "scalar",
        "group_rows": "scalar",
        "bits": "scalar",
        "supergroup": {"rows": "scalar", "groups": "scalar"},
        **codes_stream.PARAMETERS,
        **outlier_streams.PARAMETERS,
    }

    def check(self, record: TensorRecord) -> None:
        """Parameters and streams against FORMAT.md 5.5."""
        rows, columns = record.matrix_shape
        roles = Roles(record, ROLES)
        codes_stream.check(record, roles, CODE_DTYPES)
        groups = -(-columns // parameter_int(record, "group_size", 1))
        parameter_int(record, "bits")
        roles.optional("permutation", codes_stream.INDEX_DTYPES, columns)
        supergroup = supergroup_of(record)
        tiles = 0
        if supergroup is not None:
            tiles = -(-rows // supergroup[0]) * -(-groups // supergroup[1])
        given = {kind: self._check_values(roles, kind, rows * groups, tiles) for kind in DIRECT}
        if not given["scale"] or (given["zero_point"] and given["minimum"]):
            raise CorruptError(
                f"tensor {record.name!r}: needs scales, and zero points or minimums but not both"
            )
        if (supergroup is not None) != ("level2" in given.values()):
            raise CorruptError(f"tensor {record.name!r}: supergroup and _codes streams disagree")
        outlier_streams.check(record, roles)

    @staticmethod
    def _check_values(roles: Roles, kind: str, n: int, tiles: int) -> str:
        direct = roles.optional(*DIRECT[kind], n)
        codes = roles.optional(f"{kind}_codes", LEVEL2_DTYPES, n)
        steps = roles.optional(f"{kind}_steps", FLOAT_DTYPES, tiles)
        zeros = roles.optional(f"{kind}_zeros", FLOAT_DTYPES, tiles)
        if (codes is None) != (steps is None) or (zeros is not None and codes is None):
            raise CorruptError(f"tensor {roles.record.name!r}: {kind} lacks codes or steps")
        if direct is not None and codes is not None:
            raise CorruptError(f"tensor {roles.record.name!r}: {kind} is given twice")
        return "direct" if direct is not None else "level2" if codes is not None else ""

    def features(self, record: TensorRecord) -> set[str]:
        """The scheme's own bit and those of its options."""
        supergroups = {"supergroups"} if "supergroup" in record.parameters else set()
        tiles = {"group_rows"} if "group_rows" in record.parameters else set()
        return {"grouped"} | supergroups | tiles | optional_features(record)

    def verify(self, record: TensorRecord, fetch: Streamed) -> None:
        """Permutation, channel order and the places of outliers."""
        if "permutation" in record.by_role:
            codes_stream.check_permutation(record, fetch, "permutation", record.matrix_shape[1])
        codes_stream.verify(record, fetch)
        outlier_streams.verify(record, fetch)

    def restore(
        self, record: TensorRecord, fetch: Streamed, rows: range, columns: range, out: Elements, dtype: str
    ) -> None:
        """Dequantized tile by tile; the native twin of `dequantize` rounds to `dtype` as it goes."""
        group_size = parameter_int(record, "group_size", 1)
        permutation = codes_stream.read_order(record, fetch, "permutation", record.matrix_shape[1])
        target = Target(out, dtype, rows, columns, permutation)
        stored = columns if permutation is None else range(record.matrix_shape[1])
        # Numbers of groups are binary32: those of small groups, or one for each weight, take more memory than weights.
        small = group_size < 8 or record.parameters["orientation"] == "columns"
        most = tiles.TILE_ELEMENTS // 8 if small else tiles.TILE_ELEMENTS
        for some in _row_blocks(record, group_size, rows, most):
            values = _GroupNumbers(record, fetch, group_size, some)
            for tile in codes_stream.tiles(record, fetch, some, stored, most=most, unit=group_size):
                (scale, zero_point, minimum), size = values.of(tile.rows, tile.columns)
                assert scale is not None
                with target.room(tile.rows, tile.columns) as (weights, name):
                    dequantize_grouped(
                        tile.codes,
                        "i8" if tile.codes.dtype == np.int8 else "u8",
                        size,
                        scale,
                        weights,
                        name,
                        zero_point=zero_point,
                        minimum=minimum,
                        n_threads=n_threads(),
                    )
        outlier_streams.apply(out, dtype, record, fetch, rows, columns, permutation)


def _row_blocks(record: TensorRecord, group_size: int, rows: range, most: int) -> Iterator[range]:
    """Rows whose groups are read at once: by columns each tile needs those of all rows, by rows its own."""
    step = len(rows)
    if record.parameters["orientation"] == "columns":
        step = max(1, most // -(-record.matrix_shape[1] // group_size))
    for first in range(rows.start, rows.stop, step):
        yield range(first, min(rows.stop, first + step))


class _GroupNumbers:
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


SCHEME = GroupedScheme()
