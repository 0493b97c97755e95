"""Stored tensor -> elements, a few rows at a time so float32 never exists for all of a large one. No torch."""

import numpy as np

from spqfmt.codecs.elements import CARRIERS, Elements
from spqfmt.container.reader import Reader
from spqfmt.records import TensorRecord

_BLOCK_WEIGHTS = 1 << 22


def holder(reader: Reader, record: TensorRecord) -> TensorRecord:
    """The tensor that holds the values: the record itself, or the one it is tied to."""
    return reader.index.by_name[record.tied_to] if record.tied_to else record


def read_matrix(
    reader: Reader, record: TensorRecord, first: int, stop: int, dtype: str | None = None
) -> Elements:
    """Rows `first` to `stop` of the stored matrix (FORMAT.md 5.1), [rows, columns], carrier of the record's dtype.

    `dtype` f32 gives a quantized tensor's weights before their rounding to the record's dtype.
    """
    record = holder(reader, record)
    if record.scheme == "dense":
        return reader.read_rows(record, first, stop)
    name = dtype or record.dtype
    out = np.empty((stop - first, record.matrix_shape[1]), CARRIERS[name])
    for low, high in row_blocks(record, first, stop):
        # binary32 widens to f64 as it is assigned.
        direct = "f32" if name == "f64" else name
        out[low - first : high - first] = reader.read_rows(record, low, high, direct)
    return out


def read_tensor(reader: Reader, record: TensorRecord, dtype: str | None = None) -> Elements:
    """The whole tensor in its own shape. See `read_matrix`."""
    record = holder(reader, record)
    if record.scheme == "dense" and not record.is_rearranged:
        return reader.read_elements(record, "values").reshape(record.shape)
    matrix = read_matrix(reader, record, 0, record.matrix_shape[0], dtype)
    if not record.transposed:
        return matrix.reshape(record.shape)
    *stacked, rows, columns = record.view or record.shape
    return np.ascontiguousarray(matrix.reshape(*stacked, columns, rows).swapaxes(-1, -2)).reshape(
        record.shape
    )


def row_blocks(record: TensorRecord, first: int, stop: int) -> list[tuple[int, int]]:
    """Row ranges of some million weights that end where chunks of codes do, so that none is decoded twice."""
    columns = record.matrix_shape[1]
    if (
        record.scheme == "dense"
        or record.parameters.get("orientation") != "rows"
        or "channel_order" in record.by_role
    ):
        return [(first, stop)]
    blocks = []
    low = first
    for chunk in record.by_role["codes"].chunks:
        end = chunk.first + chunk.n_elements
        if end % columns == 0 and low + _BLOCK_WEIGHTS // columns <= end // columns < stop:
            blocks.append((low, end // columns))
            low = end // columns
    return [*blocks, (low, stop)]
