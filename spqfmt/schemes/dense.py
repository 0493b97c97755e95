"""Scheme dense: the elements themselves, bit for bit (FORMAT.md 5.2)."""

from collections.abc import Mapping
from dataclasses import dataclass

from spqfmt import wire
from spqfmt.codecs.elements import Elements
from spqfmt.errors import CorruptError
from spqfmt.kernels.json_text import Wanted
from spqfmt.records import TensorRecord
from spqfmt.schemes import codes as codes_stream
from spqfmt.schemes import tiles
from spqfmt.schemes.base import Encoded, Float32, Roles, StreamData, Streamed
from spqfmt.schemes.floats import widen
from spqfmt.schemes.sides import PackedScheme, Sides

ROLES = ("values", "channel_order")
DTYPES = (
    "f64", "f32", "f16", "bf16", *wire.SMALL_FLOATS, "c64",
    "i64", "i32", "i16", "i8", "u64", "u32", "u16", "u8", "bool",
)  # fmt: skip


@dataclass(frozen=True)
class Dense:
    """A tensor as it is. `values`: carrier of `dtype`, row-major, any shape."""

    values: Elements
    dtype: str

    def encode(self) -> Encoded:
        """Return the one stream of the elements."""
        row = self.values.shape[-1] if self.values.ndim else 1
        data = StreamData("values", self.dtype, self.values.reshape(-1), row_elements=max(1, row))
        return Encoded("dense", {}, (data,))

    def dequantize(self) -> Float32:
        """The floats as float32, any shape."""
        return widen(self.values, self.dtype)


def _is_ordered(record: TensorRecord) -> bool:
    return "orientation" in record.parameters or "channel_order" in record.by_role


class DenseScheme(PackedScheme):
    """Reads tensors of scheme dense."""

    name = "dense"
    roles = ROLES
    weights = "values"
    is_quantized = False
    parameters: Mapping[str, Wanted] = codes_stream.PARAMETERS

    def check(self, record: TensorRecord) -> None:
        """The one stream has the tensor's dtype and size."""
        if record.dtype not in DTYPES or record.transposed:
            raise CorruptError(f"tensor {record.name!r}: a dense tensor cannot be that")
        roles = Roles(record, ROLES)
        if record.shape and record.n_weights:
            codes_stream.check(record, roles, (record.dtype,), role="values", orientation="rows")
            return
        roles.required("values", (record.dtype,), record.n_weights)
        if len(roles.record.streams) > 1 or record.parameters.keys() & self.parameters.keys():
            raise CorruptError(f"tensor {record.name!r}: a scalar, or no elements, has no order")

    def features(self, record: TensorRecord) -> set[str]:
        """That of an order of its channels."""
        used = {"dense_order"} if _is_ordered(record) else set()
        return used | ({"channel_order"} & set(record.by_role))

    def verify(self, record: TensorRecord, fetch: Streamed) -> None:
        """The order of the channels; any bits are values."""
        codes_stream.verify(record, fetch)

    def restore(
        self, record: TensorRecord, fetch: Streamed, rows: range, columns: range, out: Elements, dtype: str
    ) -> None:
        """Restore into the carrier of the tensor's dtype, whatever `dtype`."""
        _, width = record.matrix_shape
        in_order = (len(columns) == width or len(rows) == 1) and not _is_ordered(record)
        if in_order and out.flags.c_contiguous:
            fetch.into("values", rows.start * width + columns.start, out.reshape(-1))
            return
        for tile in codes_stream.tiles(
            record, fetch, rows, columns, most=tiles.TILE_ELEMENTS // 4, role="values"
        ):
            tiles.put(out, rows, columns, of_rows=tile.rows, of_columns=tile.columns, values=tile.codes)

    def whole_because(self, record: TensorRecord) -> str:
        """Rows in another order, or columns."""
        if codes_stream.by_columns(record):
            return "values by columns"
        return "values in another order of rows" if "channel_order" in record.by_role else ""

    def number_bytes(self, record: TensorRecord) -> int:
        """Return 0: there are no numbers beside the elements."""
        return 0

    def read_sides(self, record: TensorRecord, fetch: Streamed) -> Sides:
        """Read the sides that all schemes share; there are no others."""
        sides = Sides(record)
        sides.read_shared(fetch)
        return sides


SCHEME = DenseScheme()
