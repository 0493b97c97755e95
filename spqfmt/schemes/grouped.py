"""Scheme grouped: codes with a scale and a zero point for each group of columns (FORMAT.md 5.5)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from spqfmt.codecs.elements import CARRIERS, Elements
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
    parameter_int,
)
from spqfmt.schemes.codes import Layout
from spqfmt.schemes.floats import overflow_allowed, small_float_values, widen
from spqfmt.schemes.group_numbers import (
    DIRECT,
    FLOAT_DTYPES,
    LEVELED_DTYPES,
    GroupedSides,
    GroupValues,
    TileGroups,
    check_values,
    group_rows_of,
    kinds_of,
    n_lines,
    supergroup_of,
    values_of_rows,
)
from spqfmt.schemes.group_numbers import (
    ROLES as NUMBER_ROLES,
)
from spqfmt.schemes.outliers import Outliers
from spqfmt.schemes.sides import PackedScheme, outliers_in
from spqfmt.schemes.tiles import Target
from spqfmt.schemes.uniform import optional_features
from spqfmt.wire import DTYPES, SMALL_FLOATS

CODE_DTYPES = (
    "u2", "u4", "u8", "i2", "i4", "i8", "f4_e2m1", "f8_e4m3", "f8_e5m2", "f8_e4m3fnuz", "f8_e5m2fnuz",
)  # fmt: skip
_TABLE = 256
_OF_SUPERGROUPS = ("_steps", "_zeros", "_minimums")
ROLES = ("codes", "channel_order", "permutation", "levels", *NUMBER_ROLES, *outlier_streams.ROLES)


@dataclass(frozen=True)
class Grouped:
    """Codes [rows, columns] in stored column order; `zero_point` or `minimum` or neither; supergroup (lines, groups).

    With `levels`, float carrier [2^bits], the value of a code is the level of that number. Groups are tiles of
    `group_rows` rows of one matrix, of which `stacked_rows` rows each are stacked, or all are one where it is None.
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
    group_rows: int = 1
    levels: Elements | None = None
    levels_dtype: str = "f32"
    stacked_rows: int | None = None

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
        if self.levels is not None:
            streams += (StreamData("levels", self.levels_dtype, self.levels),)
        if self.group_rows > 1:
            parameters["group_rows"] = self.group_rows
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
        rows = self.codes.shape[0]
        height = self.stacked_rows or rows
        matrix, row = np.divmod(np.arange(rows), height)
        lines = matrix * -(-height // self.group_rows) + row // self.group_rows
        values = [
            None if part is None else part.to_float32(self.supergroup)[lines]
            for part in (self.scale, self.zero_point, self.minimum)
        ]
        scale, zero_point, minimum = values
        assert scale is not None
        levels = None if self.levels is None else widen(self.levels, self.levels_dtype)
        codes = widen(self.codes, self.code_dtype) if levels is None else levels[self.codes]
        weights = dequantize(codes, self.group_size, scale, zero_point=zero_point, minimum=minimum)
        if self.outliers is not None:
            self.outliers.replace(weights)
        return weights if self.permutation is None else unpermute(weights, self.permutation)


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
    # Elements are taken many times faster than they are assigned.
    taken = np.empty_like(permutation)
    taken[permutation] = np.arange(permutation.size, dtype=permutation.dtype)
    return np.take(matrix, taken, axis=1)


class GroupedScheme(PackedScheme):
    """Reads tensors of scheme grouped."""

    name = "grouped"
    roles = ROLES
    weights = "codes"
    is_quantized = True
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
        _, columns = record.matrix_shape
        roles = Roles(record, ROLES)
        codes_stream.check(record, roles, CODE_DTYPES)
        code_dtype = record.by_role["codes"].dtype
        levels = roles.optional("levels", FLOAT_DTYPES, 1 << DTYPES[code_dtype].bits)
        if levels is not None and code_dtype not in LEVELED_DTYPES:
            raise CorruptError(f"tensor {record.name!r}: codes of {code_dtype} have no levels")
        lines = n_lines(record)
        groups = -(-columns // parameter_int(record, "group_size", 1))
        parameter_int(record, "bits")
        roles.optional("permutation", codes_stream.INDEX_DTYPES, columns)
        supergroup = supergroup_of(record)
        tiles = 0
        if supergroup is not None:
            tiles = -(-lines // supergroup[0]) * -(-groups // supergroup[1])
        given = {kind: check_values(roles, kind, lines * groups, tiles) for kind in DIRECT}
        if not given["scale"] or (given["zero_point"] and given["minimum"]):
            raise CorruptError(
                f"tensor {record.name!r}: needs scales, and zero points or minimums but not both"
            )
        if (supergroup is not None) != ("level2" in given.values()):
            raise CorruptError(f"tensor {record.name!r}: supergroup and _codes streams disagree")
        outlier_streams.check(record, roles)

    def features(self, record: TensorRecord) -> set[str]:
        """The scheme's own bit and those of its options."""
        supergroups = {"supergroups"} if "supergroup" in record.parameters else set()
        tiles = {"group_rows"} if "group_rows" in record.parameters else set()
        by_end = {"levels": "levels", "_minimums": "supergroup_minimums"}
        of_roles = {
            feature for role in record.by_role for end, feature in by_end.items() if role.endswith(end)
        }
        return {"grouped"} | supergroups | tiles | of_roles | optional_features(record)

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
        target = Target(out=out, dtype=dtype, rows=rows, columns=columns, permutation=permutation)
        stored = columns if permutation is None else range(record.matrix_shape[1])
        # Numbers of groups are binary32: those of small groups, or one for each weight, take more memory than weights.
        small = group_size < 8 or record.parameters["orientation"] == "columns"
        known = _values_of_codes(record, fetch)
        most = tiles.TILE_ELEMENTS // 8 if small else tiles.TILE_ELEMENTS
        for some in _row_blocks(record, group_size, rows, most):
            values = TileGroups(record, fetch, group_size, some)
            for tile in codes_stream.tiles(record, fetch, some, stored, most=most, unit=group_size):
                (scale, zero_point, minimum), size = values.of(tile.rows, tile.columns)
                assert scale is not None
                with target.room(tile.rows, tile.columns) as (weights, name):
                    dequantize_grouped(
                        tile.codes,
                        "i8" if tile.codes.dtype == np.int8 else "u8",
                        size,
                        scale=scale,
                        out=weights,
                        out_dtype=name,
                        zero_point=zero_point,
                        minimum=minimum,
                        values=known,
                        n_threads=n_threads(),
                    )
        outlier_streams.apply(
            out, dtype, record, fetch=fetch, rows=rows, columns=columns, permutation=permutation
        )

    def whole_because(self, record: TensorRecord) -> str:
        """Products compute from all codes, and all numbers of groups."""
        return ""

    def number_bytes(self, record: TensorRecord) -> int:
        """The streams as they are, or float32 where rows are stored in another order, and tables of levels."""
        rows, columns = record.matrix_shape
        levels = record.by_role.get("levels")
        tables = 0 if levels is None else 4 * levels.n
        if codes_stream.reorders_rows(record):
            groups = -(-columns // parameter_int(record, "group_size", 1))
            return tables + 4 * rows * groups * len(kinds_of(record))
        streams = [record.by_role[role] for role in NUMBER_ROLES if role in record.by_role]
        tables += sum(4 * _TABLE for stream in streams if stream.role.endswith("_levels"))
        return tables + sum(stream.n * CARRIERS[stream.dtype].itemsize for stream in streams)

    def read_sides(self, record: TensorRecord, fetch: Streamed) -> GroupedSides:
        """The numbers as they are stored."""
        sides = GroupedSides(record, group_size=parameter_int(record, "group_size", 1))
        sides.read_shared(fetch)
        if "levels" in record.by_role:
            sides.tables["levels"] = widen(fetch("levels"), record.by_role["levels"].dtype)
        stored_rows = sides.stored_rows
        if stored_rows is None:
            sides.groups = {role: fetch(role) for role in NUMBER_ROLES if role in record.by_role}
            sides.tables |= {
                role: _table(sides.groups[role], record.by_role[role].dtype)
                for role in sides.groups
                if role.endswith("_levels")
            }
            return sides
        # Tiles of supergroups do not follow the stored order, so the values themselves are kept.
        for kind in kinds_of(record):
            values = values_of_rows(
                record, fetch, kind, group_size=sides.group_size, rows=range(record.matrix_shape[0])
            )
            assert values is not None
            sides.groups[kind] = values[stored_rows]
        return sides

    def share_sides(self, sides: GroupedSides, matrix: TensorRecord, first: int, stop: int) -> GroupedSides:
        """Share out as all schemes do, and the numbers of groups."""
        n_rows = sides.record.matrix_shape[0]

        def own(values: Elements) -> Elements:
            # All are by lines, or by supergroups of whole lines, of which each matrix has as many.
            mine: Elements = values.reshape(n_rows // (stop - first), -1)[first // (stop - first)]
            return mine

        return replace(
            sides,
            record=matrix,
            groups={
                role: values if role.endswith("levels") else own(values)
                for role, values in sides.groups.items()
            },
            outliers=outliers_in(sides.outliers, first, stop),
        )

    def slice_unit(self, record: TensorRecord, *, of_columns: bool) -> int:
        """Whole groups, and whole supergroups where there are any."""
        lines, groups = supergroup_of(record) or (1, 1)
        if of_columns:
            return parameter_int(record, "group_size", 1) * groups
        return group_rows_of(record) * lines

    def slice_sizes(self, record: TensorRecord, rows: range, columns: range) -> Mapping[str, int]:
        """The numbers of the slice's groups and supergroups."""
        group_size, tile = parameter_int(record, "group_size", 1), supergroup_of(record) or (1, 1)
        lines, groups = -(-len(rows) // group_rows_of(record)), -(-len(columns) // group_size)
        tiles = -(-lines // tile[0]) * -(-groups // tile[1])
        return {
            role: tiles if role.endswith(_OF_SUPERGROUPS) else lines * groups
            for role in NUMBER_ROLES
            if role in record.by_role and not role.endswith("levels")
        }

    def slice_sides(
        self, sides: GroupedSides, record: TensorRecord, rows: range, columns: range
    ) -> GroupedSides:
        """Slice as all schemes do, and the numbers of groups."""
        whole = sides.record
        group_rows, tile = group_rows_of(whole), supergroup_of(whole) or (1, 1)
        shape = n_lines(whole), -(-whole.matrix_shape[1] // sides.group_size)
        first = rows.start // group_rows, columns.start // sides.group_size
        stop = -(-rows.stop // group_rows), -(-columns.stop // sides.group_size)

        def own(role: str, values: Elements) -> Elements:
            if role.endswith("levels"):
                return values
            per = tile if role.endswith(_OF_SUPERGROUPS) else (1, 1)
            lines, groups = (
                slice(begin // size, -(-end // size))
                for begin, end, size in zip(first, stop, per, strict=True)
            )
            mine: Elements = values.reshape(-(-shape[0] // per[0]), -(-shape[1] // per[1]))[lines, groups]
            return mine.reshape(-1).copy()

        sides = replace(sides, groups={role: own(role, values) for role, values in sides.groups.items()})
        sliced = super().slice_sides(sides, record, rows, columns)
        assert isinstance(sliced, GroupedSides)
        return sliced


def _values_of_codes(record: TensorRecord, fetch: Fetch) -> Float32 | None:
    """What each code stands for, float32 [256], as codes are a byte each; None where they are integers."""
    levels, dtype = record.by_role.get("levels"), record.by_role["codes"].dtype
    if levels is None and dtype not in SMALL_FLOATS:
        return None
    if levels is None:
        values = small_float_values(dtype)
        return np.pad(values, (0, _TABLE - values.size))
    return _table(fetch("levels"), levels.dtype)


def _table(levels: Elements, dtype: str) -> Float32:
    """Levels for every byte, float32 [256]."""
    return np.pad(widen(levels, dtype), (0, _TABLE - levels.size))


def _row_blocks(record: TensorRecord, group_size: int, rows: range, most: int) -> Iterator[range]:
    """Rows whose groups are read at once: by columns each tile needs those of all rows, by rows its own."""
    step = len(rows)
    if record.parameters["orientation"] == "columns":
        step = max(1, most // -(-record.matrix_shape[1] // group_size))
    for first in range(rows.start, rows.stop, step):
        yield range(first, min(rows.stop, first + step))


SCHEME = GroupedScheme()
