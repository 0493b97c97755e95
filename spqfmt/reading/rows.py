"""Stored tensor -> elements, a few rows at a time so float32 never exists for all of a large one. No torch.

Rows and columns are here those of the tensor, seen as a matrix whose columns are its last dimension.
"""

from collections.abc import Iterator
from math import prod

import numpy as np

from spqfmt.codecs.elements import CARRIERS, Elements
from spqfmt.container.reader import Reader
from spqfmt.records import TensorRecord
from spqfmt.schemes.codes import by_columns
from spqfmt.schemes.registry import SCHEMES
from spqfmt.schemes.tiles import cut

_BLOCK_WEIGHTS = 1 << 21


def holder(reader: Reader, record: TensorRecord) -> TensorRecord:
    """The tensor that holds the values: the record itself, or the one it is tied to."""
    return reader.index.by_name[record.tied_to] if record.tied_to else record


def rows_and_columns(record: TensorRecord) -> tuple[range, range]:
    """All of them; a scalar is a row of one column."""
    shape = record.shape or (1,)
    return range(prod(shape[:-1])), range(shape[-1])


def dtype_of(record: TensorRecord, dtype: str | None) -> str:
    """The dtype that a tensor comes in when `dtype` is asked for, which a dense one ignores."""
    return record.dtype if dtype is None or not SCHEMES[record.scheme].is_quantized else dtype


def read_part(
    reader: Reader, record: TensorRecord, rows: range, columns: range, dtype: str | None = None
) -> Elements:
    """A part of a tensor, [rows, columns], carrier of the record's dtype.

    `dtype` f32 gives a quantized tensor's weights before their rounding to the record's dtype.
    """
    record = holder(reader, record)
    name = dtype_of(record, dtype)
    if _is_read_whole(record):
        whole = _whole(reader, record, name)
        return np.ascontiguousarray(whole[rows.start : rows.stop, columns.start : columns.stop])
    out = np.empty((len(rows), len(columns)), CARRIERS[name])
    if record.transposed:
        reader.restore(record, columns, rows, out.T, name)
    else:
        reader.restore(record, rows, columns, out, name)
    return out


def read_tensor(reader: Reader, record: TensorRecord, dtype: str | None = None) -> Elements:
    """The whole tensor in its own shape. See `read_part`."""
    record = holder(reader, record)
    return read_part(reader, record, *rows_and_columns(record), dtype).reshape(record.shape)


def read_first(
    reader: Reader, record: TensorRecord, first: int, stop: int, dtype: str | None = None
) -> Elements:
    """Elements `first` to `stop` of the first dimension of a tensor that is no scalar. See `read_part`."""
    record = holder(reader, record)
    rows, columns = rows_and_columns(record)
    if len(record.shape) == 1:
        return read_part(reader, record, rows, columns[first:stop], dtype).reshape(stop - first)
    per = prod(record.shape[1:-1])
    part = read_part(reader, record, rows[first * per : stop * per], columns, dtype)
    return part.reshape(stop - first, *record.shape[1:])


def _is_read_whole(record: TensorRecord) -> bool:
    """Whether rows of the matrix are not rows or columns of the tensor: a stack of transposed ones, or a view."""
    return record.view is not None or (record.transposed and len(record.shape) > 2)


def _whole(reader: Reader, record: TensorRecord, name: str) -> Elements:
    matrix = np.empty(record.matrix_shape, CARRIERS[name])
    reader.restore(record, range(matrix.shape[0]), range(matrix.shape[1]), matrix, name)
    if record.transposed:
        *stacked, rows, columns = record.view or record.shape
        matrix = np.ascontiguousarray(matrix.reshape(*stacked, columns, rows).swapaxes(-1, -2))
    all_rows, all_columns = rows_and_columns(record)
    return matrix.reshape(len(all_rows), len(all_columns))


def is_by_rows(record: TensorRecord) -> bool:
    """Whether a row of the tensor is stored in one place, rather than a column."""
    return by_columns(record) == record.transposed


def blocks(record: TensorRecord) -> Iterator[tuple[range, range]]:
    """Rows and columns of parts of some million weights, all of the tensor in the order in which it is stored."""
    rows, columns = rows_and_columns(record)
    by_rows = is_by_rows(record)
    outer, inner = (rows, columns) if by_rows else (columns, rows)
    if not outer or not inner:
        return
    if _is_read_whole(record):
        yield rows, columns
        return
    chunks = record.by_role[SCHEMES[record.scheme].weights].chunks
    for some in cut(outer, chunks, len(inner), max(1, _BLOCK_WEIGHTS // len(inner))):
        for first in range(0, len(inner), _BLOCK_WEIGHTS):
            piece = inner[first : first + _BLOCK_WEIGHTS]
            yield (some, piece) if by_rows else (piece, some)
