"""Scheme uniform: integer codes on an even grid (FORMAT.md 5.3)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from spqfmt.codecs.chunks import TARGET_CHUNK_BYTES
from spqfmt.codecs.elements import Elements
from spqfmt.codecs.threads import n_threads
from spqfmt.errors import CorruptError
from spqfmt.kernels.dequantize import dequantize_uniform
from spqfmt.kernels.json_text import Wanted
from spqfmt.records import TensorRecord
from spqfmt.schemes import codes as codes_stream
from spqfmt.schemes import outliers as outlier_streams
from spqfmt.schemes import tiles, trellis
from spqfmt.schemes.base import (
    Encoded,
    Fetch,
    Float32,
    Roles,
    StreamData,
    Streamed,
    bits_from_float,
    check_int,
    float_from_bits,
)
from spqfmt.schemes.codes import Layout
from spqfmt.schemes.floats import Scale, check_log8, overflow_allowed
from spqfmt.schemes.outliers import Outliers
from spqfmt.schemes.sides import PackedScheme, Sides, outliers_in
from spqfmt.schemes.tiles import Channels, Target
from spqfmt.wire import LOG8_MAX_BIAS, LOG8_MIN_BIAS

SCALES = ("row_scales", "column_scales")
ROLES = ("codes", "channel_order", *SCALES, *outlier_streams.ROLES)
CODE_DTYPES = ("i2", "i4", "i8")
SCALE_DTYPES = ("f32", "f16", "bf16", "log8")


@dataclass(frozen=True)
class Uniform:
    """`weight = step * code * row_scale * column_scale`; codes int8 [rows, columns].

    `shared_column_scales` names an earlier tensor of the file that holds the same column scales. With `trellis_rows`
    the codes are paths down so many stored rows each, and are stored as path codes; `stacked_rows` are those of each of
    the matrices that the tensor stacks, None for one.
    """

    codes: Elements
    step: np.float32
    code_dtype: str = "i8"
    row_scale: Scale | None = None
    column_scale: Scale | None = None
    outliers: Outliers | None = None
    layout: Layout = field(default_factory=Layout)
    shared_column_scales: str | None = None
    trellis_rows: int | None = None
    stacked_rows: int | None = None

    def encode(self) -> Encoded:
        """Streams in the order of FORMAT.md 5.3. ValueError where `trellis_rows` is given and codes are no paths."""
        parameters, streams = self.layout.encode(self.codes, self.code_dtype)
        if self.trellis_rows is not None and self.codes.size:
            parameters["trellis"] = {"rows": self.trellis_rows}
            streams = (self._folded(streams[0], self.trellis_rows), *streams[1:])
        parameters["step"] = bits_from_float(self.step)
        for role, scale in zip(SCALES, (self.row_scale, self.column_scale), strict=True):
            if scale is not None:
                if scale.dtype == "log8":
                    parameters[_log8_key(role)] = [scale.octave_steps, scale.bias]
                streams += (StreamData(role, scale.dtype, scale.values),)
        if self.outliers is not None and self.outliers.rows.size:
            rows, columns = self.codes.shape
            parameters["outliers"], more = self.outliers.encode((rows, columns))
            streams += more
        same_as = {}
        if self.shared_column_scales is not None:
            [scales] = [stream for stream in streams if stream.role == "column_scales"]
            streams = tuple(stream for stream in streams if stream is not scales)
            same_as = {"column_scales": (scales, self.shared_column_scales)}
        return Encoded("uniform", parameters, streams, same_as)

    def _folded(self, stored: StreamData, height: int) -> StreamData:
        """The stream of codes with path codes in their place, in chunks that end where tiles do."""
        if self.layout.orientation != "rows" or self.code_dtype != "i8" or height < 1:
            raise ValueError("a trellis is for codes of i8 by rows, in tiles of one row or more")
        n_rows, n_columns = self.codes.shape
        tiles = trellis.tiles_of(height, self.stacked_rows or n_rows, self.layout.class_sizes)
        path = trellis.folded(stored.elements.reshape(n_rows, n_columns), tiles).reshape(-1)
        pieces = [(len(some), tall) for some, tall, _ in tiles.pieces(range(n_rows))]
        tile = min(pieces[0]) * n_columns
        if len(pieces) == 1 and tile <= TARGET_CHUNK_BYTES and self.stacked_rows not in {None, n_rows}:
            # Whoever knows whether matrices are read one by one cuts between them, which is between tiles.
            return replace(stored, elements=path, row_elements=tile)
        sizes = (size for n, tall in pieces for size in trellis.tile_chunks(n, tall, n_columns))
        return replace(stored, elements=path, sizes=tuple(sizes))

    def dequantize(self) -> Float32:
        """The weights, float32 [rows, columns]."""
        matrix = dequantize(
            self.codes,
            self.step,
            None if self.row_scale is None else self.row_scale.to_float32(),
            None if self.column_scale is None else self.column_scale.to_float32(),
        )
        if self.outliers is not None:
            self.outliers.replace(matrix)
        return matrix


def dequantize(
    codes: Elements, step: np.float32, row_scale: Float32 | None, column_scale: Float32 | None
) -> Float32:
    """The formula of FORMAT.md 5.3, each operation rounded once to binary32."""
    with overflow_allowed():
        row = step if row_scale is None else (step * row_scale)[:, None]
        matrix = np.multiply(codes, row, dtype=np.float32)
        if column_scale is not None:
            matrix *= column_scale
    return matrix


def _log8_key(role: str) -> str:
    return role.removesuffix("s") + "_log8"


@dataclass
class UniformSides(Sides):
    """Float32: `row`, step times row scale; `column` scales, None where there are none."""

    row: Float32 = field(kw_only=True)
    column: Float32 | None = field(kw_only=True, default=None)

    def numbers(self) -> Iterator[Elements]:
        """Give the scales of rows, and of columns where there are any."""
        yield self.row
        if self.column is not None and "column_scales" in self.record.by_role:
            yield self.column


class UniformScheme(PackedScheme):
    """Reads tensors of scheme uniform."""

    name = "uniform"
    roles = ROLES
    weights = "codes"
    is_quantized = True
    turns_columns = True
    parameters: Mapping[str, Wanted] = {
        "step": "scalar",
        **{_log8_key(role): "integers" for role in SCALES},
        **codes_stream.PARAMETERS,
        **trellis.PARAMETERS,
        **outlier_streams.PARAMETERS,
    }

    def check(self, record: TensorRecord) -> None:
        """Parameters and streams against FORMAT.md 5.3."""
        roles = Roles(record, ROLES)
        codes_stream.check(record, roles, CODE_DTYPES)
        trellis.check(record)
        if float_from_bits(record.parameters.get("step"), "step") <= 0:
            raise CorruptError(f"tensor {record.name!r}: step is not above 0")
        for role, n in zip(SCALES, record.matrix_shape, strict=True):
            stream = roles.optional(role, SCALE_DTYPES, n)
            parameter = record.parameters.get(_log8_key(role))
            if (stream is not None and stream.dtype == "log8") != (parameter is not None):
                raise CorruptError(f"tensor {record.name!r}: {role} and {_log8_key(role)} disagree")
            if parameter is not None:
                _log8_parameter(parameter, record)
        outlier_streams.check(record, roles)

    def features(self, record: TensorRecord) -> set[str]:
        """The scheme's own bit and those of its options."""
        of_trellis = {"trellis"} if "trellis" in record.parameters else set()
        return {"uniform"} | of_trellis | optional_features(record)

    def verify(self, record: TensorRecord, fetch: Streamed) -> None:
        """log8 scales, path codes, the channel order and the places of outliers."""
        for role in SCALES:
            if record.by_role.get(role) is not None and record.by_role[role].dtype == "log8":
                for values, _ in fetch.runs(role):
                    check_log8(values, *_log8(record, role), f"tensor {record.name!r}: {role}")
        trellis.verify(record, fetch)
        codes_stream.verify(record, fetch)
        outlier_streams.verify(record, fetch)

    def restore(
        self, record: TensorRecord, fetch: Streamed, rows: range, columns: range, out: Elements, dtype: str
    ) -> None:
        """Dequantized tile by tile; the native twin of `dequantize` rounds to `dtype` as it goes."""
        step = float_from_bits(record.parameters["step"], "step")
        row_scales, column_scales = (_Scales(record, fetch, role) for role in SCALES)
        target = Target(out, dtype, rows, columns)
        for tile in codes_stream.tiles(record, fetch, rows, columns, most=tiles.TILE_ELEMENTS):
            row_scale = row_scales.of(tile.rows)
            with overflow_allowed():
                row = np.full(len(tile.rows), step) if row_scale is None else step * row_scale
            with target.room(tile.rows, tile.columns) as (weights, name):
                dequantize_uniform(
                    tile.codes,
                    "i8",
                    row,
                    column=column_scales.of(tile.columns),
                    out=weights,
                    out_dtype=name,
                    n_threads=n_threads(),
                )
        outlier_streams.apply(out, dtype, record, fetch=fetch, rows=rows, columns=columns)

    def whole_because(self, record: TensorRecord) -> str:
        """Return nothing: every uniform tensor can be computed from its codes."""
        return ""

    def number_bytes(self, record: TensorRecord) -> int:
        """A number for each row and, where there are scales of them, for each column."""
        rows, columns = record.matrix_shape
        return 4 * rows + (4 * columns if "column_scales" in record.by_role else 0)

    def read_sides(self, record: TensorRecord, fetch: Streamed) -> UniformSides:
        """Scales of rows in the order in which these are stored."""
        scale = read_scale(record, fetch, "row_scales", first=0, stop=None)
        step = float_from_bits(record.parameters["step"], "step")
        row = np.full(record.matrix_shape[0], step, np.float32) if scale is None else step * scale
        sides = UniformSides(
            record, row=row, column=read_scale(record, fetch, "column_scales", first=0, stop=None)
        )
        sides.read_shared(fetch)
        if sides.stored_rows is not None:
            sides.row = row[sides.stored_rows]
        return sides

    def share_sides(self, sides: UniformSides, matrix: TensorRecord, first: int, stop: int) -> UniformSides:
        """Share out as all schemes do, and the scales of rows."""
        return replace(
            sides,
            record=matrix,
            row=sides.row[first:stop],
            outliers=outliers_in(sides.outliers, first, stop),
        )

    def slice_unit(self, record: TensorRecord, *, of_columns: bool) -> int:
        """Whole tiles of a trellis."""
        return 1 if of_columns else trellis.trellis_rows(record) or 1

    def slice_sizes(self, record: TensorRecord, rows: range, columns: range) -> Mapping[str, int]:
        """A scale for each row, and for each column."""
        return {"row_scales": len(rows), "column_scales": len(columns)}

    def slice_sides(
        self, sides: UniformSides, record: TensorRecord, rows: range, columns: range
    ) -> UniformSides:
        """Slice as all schemes do, and the scales."""
        sides = replace(
            sides,
            row=sides.row[rows.start : rows.stop].copy(),
            column=None if sides.column is None else sides.column[columns.start : columns.stop].copy(),
        )
        sliced = super().slice_sides(sides, record, rows, columns)
        assert isinstance(sliced, UniformSides)
        return sliced


class _Scales:
    """Row or column scales of the tiles of a tensor."""

    def __init__(self, record: TensorRecord, fetch: Fetch, role: str) -> None:
        self._record, self._fetch, self._role = record, fetch, role
        self._read: tuple[range, Float32 | None] | None = None

    def of(self, channels: Channels) -> Float32 | None:
        """Those of some channels: where these lie in another order, all are read."""
        record = self._record
        if self._role not in record.by_role:
            return None
        wanted = channels if isinstance(channels, range) else range(record.by_role[self._role].n)
        if self._read is None or self._read[0] != wanted:
            values = read_scale(record, self._fetch, self._role, first=wanted.start, stop=wanted.stop)
            self._read = wanted, values
        scale = self._read[1]
        return scale if scale is None or isinstance(channels, range) else scale[channels]


def optional_features(record: TensorRecord) -> set[str]:
    """The required features that stand for streams both quantized schemes may have."""
    by_role = {
        "channel_order": "channel_order",
        "permutation": "permutation",
        "outlier_gaps": "outliers",
    }
    return {feature for role, feature in by_role.items() if role in record.by_role}


def _log8_parameter(parameter: object, record: TensorRecord) -> tuple[int, int]:
    if not isinstance(parameter, list) or len(parameter) != 2 or parameter[0] not in (8, 16):
        raise CorruptError(f"tensor {record.name!r}: log8 needs [8 or 16, bias]")
    return parameter[0], check_int(parameter[1], "log8 bias", LOG8_MIN_BIAS, LOG8_MAX_BIAS)


def _log8(record: TensorRecord, role: str) -> tuple[int, int]:
    return _log8_parameter(record.parameters[_log8_key(role)], record)


def read_scale(record: TensorRecord, fetch: Fetch, role: str, first: int, stop: int | None) -> Float32 | None:
    """Row or column scales `first` to `stop` as float32; None where there are none."""
    stream = record.by_role.get(role)
    if stream is None:
        return None
    values = fetch(role, first, stop)
    if stream.dtype != "log8":
        return Scale(values, stream.dtype).to_float32()
    octave_steps, bias = _log8(record, role)
    check_log8(values, octave_steps, bias, f"tensor {record.name!r}: {role}")
    return Scale(values, "log8", octave_steps, bias).to_float32()


SCHEME = UniformScheme()
