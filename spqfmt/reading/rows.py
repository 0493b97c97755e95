"""Stored tensor -> elements, a few rows at a time so float32 never exists for all of a large one. No torch.

Rows and columns are here those of the tensor, seen as a matrix whose columns are its last dimension.
"""

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import TypeAlias

import numpy as np

from spqfmt.codecs.base import Bytes
from spqfmt.codecs.elements import CARRIERS, Elements
from spqfmt.container.reader import Reader
from spqfmt.records import Chunks, TensorRecord
from spqfmt.schemes.codes import by_columns
from spqfmt.schemes.registry import SCHEMES, scheme_of
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
    return record.dtype if dtype is None or not scheme_of(record.scheme).is_quantized else dtype


Room: TypeAlias = Callable[[int], Bytes]
"""Memory for so many bytes, uint8, whose content is unspecified."""


def heap(n_bytes: int) -> Bytes:
    """Room of numpy's own."""
    return np.empty(n_bytes, np.uint8)


def read_part(
    reader: Reader,
    record: TensorRecord,
    rows: range,
    columns: range,
    dtype: str | None = None,
    room: Room = heap,
) -> Elements:
    """A part of a tensor, [rows, columns], carrier of the record's dtype, in memory that `room` gives.

    `dtype` f32 gives a quantized tensor's weights before their rounding to the record's dtype.
    """
    record = holder(reader, record)
    reader.refuse_named(record)
    name = dtype_of(record, dtype)
    if record.view is not None and record.transposed:
        whole = _whole(reader, record, name)
        return np.ascontiguousarray(whole[rows.start : rows.stop, columns.start : columns.stop])
    carrier = np.dtype(CARRIERS[name])
    out = room(len(rows) * len(columns) * carrier.itemsize).view(carrier).reshape(len(rows), len(columns))
    if record.view is not None:
        _restore_view(reader, record, rows, columns=columns, out=out, name=name)
    elif record.transposed:
        _restore_transposed(reader, record, rows, columns=columns, out=out, name=name)
    else:
        reader.restore(record, rows, columns, out=out, dtype=name)
    return out


def read_tensor(
    reader: Reader, record: TensorRecord, dtype: str | None = None, room: Room = heap
) -> Elements:
    """The whole tensor in its own shape. See `read_part`."""
    record = holder(reader, record)
    rows, columns = rows_and_columns(record)
    return read_part(reader, record, rows, columns=columns, dtype=dtype, room=room).reshape(record.shape)


def read_first(
    reader: Reader, record: TensorRecord, first: int, stop: int, dtype: str | None = None
) -> Elements:
    """Elements `first` to `stop` of the first dimension of a tensor that is no scalar. See `read_part`."""
    record = holder(reader, record)
    rows, columns = rows_and_columns(record)
    if len(record.shape) == 1:
        return read_part(reader, record, rows, columns=columns[first:stop], dtype=dtype).reshape(stop - first)
    per = prod(record.shape[1:-1])
    part = read_part(reader, record, rows[first * per : stop * per], columns=columns, dtype=dtype)
    return part.reshape(stop - first, *record.shape[1:])


def read_block(
    reader: Reader, record: TensorRecord, block: Sequence[range], dtype: str | None = None
) -> Elements:
    """Some elements of each dimension of a tensor that is no scalar, one run of each. See `read_part`."""
    reader.refuse_named(record)
    shape = tuple(len(some) for some in block)
    if len(block) == 1:
        return read_part(reader, record, range(1), columns=block[0], dtype=dtype).reshape(shape)
    *outer, rows, columns = block
    height = record.shape[-2]
    stacked = np.ravel_multi_index(np.ix_(*outer), record.shape[:-2]).reshape(-1) if outer else np.zeros(1)
    first = [int(number) * height + rows.start for number in stacked]
    if len(rows) == height and first and first[-1] - first[0] == height * (len(first) - 1):
        run = range(first[0], first[-1] + height)
        return read_part(reader, record, run, columns=columns, dtype=dtype).reshape(shape)
    parts = [
        read_part(reader, record, range(at, at + len(rows)), columns=columns, dtype=dtype) for at in first
    ]
    if not parts:
        parts = [read_part(reader, record, range(0), columns=columns, dtype=dtype)]
    return np.concatenate(parts).reshape(shape)


def _whole(reader: Reader, record: TensorRecord, name: str) -> Elements:
    """A transposed view: its parts lie anywhere in the tensor."""
    assert record.view is not None
    matrix = np.empty(record.matrix_shape, CARRIERS[name])
    reader.restore(record, range(matrix.shape[0]), range(matrix.shape[1]), out=matrix, dtype=name)
    *stacked, rows, columns = record.view
    matrix = np.ascontiguousarray(matrix.reshape(*stacked, columns, rows).swapaxes(-1, -2))
    all_rows, all_columns = rows_and_columns(record)
    return matrix.reshape(len(all_rows), len(all_columns))


def _restore_view(
    reader: Reader, record: TensorRecord, rows: range, columns: range, out: Elements, name: str
) -> None:
    """Fill `out` with a part of a view, whose matrix has the tensor's elements in the same order."""
    _, all_columns = rows_and_columns(record)
    if len(columns) < len(all_columns) and len(rows) > 1:
        whole = np.empty((len(rows), len(all_columns)), out.dtype)
        _restore_view(reader, record, rows, columns=all_columns, out=whole, name=name)
        out[:] = whole[:, columns.start : columns.stop]
        return
    flat = out.reshape(-1)
    _, width = record.matrix_shape
    first = rows.start * len(all_columns) + columns.start
    at = 0
    while at < flat.size:
        row, column = divmod(first + at, width)
        n_rows = 1 if column else max(1, (flat.size - at) // width)
        n_columns = min(flat.size - at, width - column)
        piece = flat[at : at + n_rows * n_columns].reshape(n_rows, n_columns)
        reader.restore(
            record, range(row, row + n_rows), range(column, column + n_columns), out=piece, dtype=name
        )
        at += piece.size


def _restore_transposed(
    reader: Reader, record: TensorRecord, rows: range, columns: range, out: Elements, name: str
) -> None:
    """Fill `out` with a part of a stack of transposed matrices."""
    height, width = record.shape[-2:]
    for some in _slices(record, rows):
        inside = range(max(rows.start, some.start * height), min(rows.stop, some.stop * height))
        place = out[inside.start - rows.start : inside.stop - rows.start]
        first = some.start * height
        if len(some) == 1:
            stored_rows = range(some.start * width + columns.start, some.start * width + columns.stop)
            stored_columns = range(inside.start - first, inside.stop - first)
            reader.restore(record, stored_rows, stored_columns, out=place.T, dtype=name)
            continue
        matrix = np.empty((len(some) * width, height), out.dtype)
        reader.restore(
            record, range(some.start * width, some.stop * width), range(height), out=matrix, dtype=name
        )
        turned = matrix.reshape(len(some), width, height).swapaxes(1, 2).reshape(-1, width)
        place[:] = turned[inside.start - first : inside.stop - first, columns.start : columns.stop]


def _slices(record: TensorRecord, rows: range) -> Iterator[range]:
    """Matrices of a stack that these rows of the tensor are in: one large one or some small ones at a time."""
    height, width = record.shape[-2:]
    at_once = max(1, _BLOCK_WEIGHTS // (height * width))
    stop = -(-rows.stop // height)
    for first in range(rows.start // height, stop, at_once):
        yield range(first, min(stop, first + at_once))


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
    chunks = record.by_role[SCHEMES[record.scheme].weights].chunks
    is_stack = record.transposed and len(record.shape) > 2
    if is_stack or record.view is not None:
        if by_columns(record) or (record.view is not None and record.transposed):
            yield rows, columns  # its elements lie anywhere
            return
        if record.transposed:
            yield from _blocks_of_stack(record, chunks)
            return
    for some in cut(outer, chunks, len(inner), max(1, _BLOCK_WEIGHTS // len(inner))):
        for first in range(0, len(inner), _BLOCK_WEIGHTS):
            piece = inner[first : first + _BLOCK_WEIGHTS]
            yield (some, piece) if by_rows else (piece, some)


def _blocks_of_stack(record: TensorRecord, chunks: Chunks) -> Iterator[tuple[range, range]]:
    """Give what `blocks` gives, of a stack of transposed matrices that is stored by rows of these."""
    height, width = record.shape[-2:]
    rows, columns = rows_and_columns(record)
    for some in _slices(record, rows):
        of_these = range(some.start * height, some.stop * height)
        if len(some) > 1:
            yield of_these, columns
            continue
        first = some.start * width
        for stored in cut(range(first, first + width), chunks, height, max(1, _BLOCK_WEIGHTS // height)):
            for at in range(0, height, _BLOCK_WEIGHTS):
                yield of_these[at : at + _BLOCK_WEIGHTS], range(stored.start - first, stored.stop - first)
