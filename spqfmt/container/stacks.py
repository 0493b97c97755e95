"""A stack of matrices, such as the experts of a layer in one tensor, seen as its matrices.

Each gets a record as if it were a tensor by itself, with the chunks that hold it and no others: so it is read, decoded
and multiplied alone, by all that knows of tensors. What a stack has beside its weights is read once, and shared out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from spqfmt import wire
from spqfmt.codecs.chunks import chunk_sizes
from spqfmt.container.slices import SliceRecord
from spqfmt.records import FLOATS, Stream, TensorRecord
from spqfmt.schemes.base import Encoded, StreamData
from spqfmt.schemes.codes import by_columns
from spqfmt.schemes.group_numbers import group_rows_of, supergroup_of
from spqfmt.schemes.registry import SCHEMES
from spqfmt.schemes.sides import PackedScheme, Sides
from spqfmt.schemes.trellis import trellis_rows

_SHARED = frozenset({"column_scales", "permutation"})
"""Streams about the inputs, which all matrices of a stack have in common. They count as the first one's."""


@dataclass(frozen=True)
class MatrixRecord(TensorRecord):
    """Matrix `number` of `stack`, as a tensor [rows, columns] of its own.

    `turned`: its stored rows are inputs, [columns, rows]; only a dense stack, whose values lie as in its tensor.
    """

    stack: TensorRecord = field(kw_only=True)
    number: int = field(kw_only=True)
    turned: bool = False


def stack_of(record: TensorRecord) -> TensorRecord:
    """The tensor of the file that holds the weights of a record: its stack, what it is a slice of, or itself."""
    if isinstance(record, SliceRecord):
        return record.whole
    return record.stack if isinstance(record, MatrixRecord) else record


def whole_stack_because(record: TensorRecord) -> str:
    """Why the matrices of a stack cannot be had one by one, in a few words; empty where they can."""
    scheme = SCHEMES.get(record.scheme)
    if not isinstance(scheme, PackedScheme):
        return f"scheme {record.scheme}"
    if len(record.shape) != 3 or 0 in record.shape or record.dtype not in FLOATS:
        return "no stack of matrices of floats"
    if record.view is not None:
        return "groups in a view"
    if why := scheme.whole_because(record):
        return why
    if by_columns(record):
        return "a stack by columns"
    if "channel_order" in record.by_role:
        return "a stack in another order of rows"
    if "class_sizes" in record.parameters and trellis_rows(record) is not None:
        return "paths through classes of rows"
    tile = supergroup_of(record) if "supergroup" in record.parameters else None
    if tile is not None and -(-record.stacked_rows // group_rows_of(record)) % tile[0]:
        return "supergroups of several matrices"
    return "" if _is_cut(record) else "chunks of several matrices"


def _is_cut(record: TensorRecord) -> bool:
    """Whether chunks end where matrices do, and these at whole bytes, or will in a tensor that is not made yet."""
    n, size = record.shape[0], record.n_weights // record.shape[0]
    stream = record.by_role.get(SCHEMES[record.scheme].weights)
    if stream is None:
        return True
    ends = stream.chunks.ends
    return size * wire.DTYPES[stream.dtype].bits % 8 == 0 and int((ends % size == 0).sum()) >= n


def matrices_of(record: TensorRecord, *, turned: bool = False) -> tuple[MatrixRecord, ...]:
    """The matrices of a stack, in order, as they are stored. `turned`: of a dense one, whose rows are inputs."""
    n = record.shape[0]
    shape = record.stacked_rows, record.matrix_shape[1]
    known = {name: getattr(record, name) for name in ("dtype", "scheme", "method", "parameters")}
    return tuple(
        MatrixRecord(
            name=f"{record.name}[{number}]",
            shape=shape,
            streams=tuple(_streams_of(record, number)),
            stack=record,
            number=number,
            turned=turned,
            **known,
        )
        for number in range(n)
    )


def _streams_of(record: TensorRecord, number: int) -> Iterator[Stream]:
    n = record.shape[0]
    size = record.n_weights // n
    for stream in record.streams:
        if stream.role == SCHEMES[record.scheme].weights:
            chunks = stream.chunks.within(number * size, (number + 1) * size).counted_from(number * size)
            yield Stream(stream.role, stream.dtype, size, chunks)
        elif stream.role.endswith("levels"):
            yield Stream(stream.role, stream.dtype, stream.n)
        elif stream.role not in _SHARED:
            share = (number + 1) * stream.n // n - number * stream.n // n
            yield Stream(stream.role, stream.dtype, share)
        elif number == 0:
            yield Stream(stream.role, stream.dtype, stream.n)


def share_sides(sides: Sides, matrix: MatrixRecord) -> Sides:
    """What a matrix has of the sides of its stack, without a copy but for the bounds of rows of outliers."""
    scheme: Any = SCHEMES[matrix.scheme]
    rows = matrix.stack.stacked_rows
    first = matrix.number * rows
    shared: Sides = scheme.share_sides(sides, matrix, first, first + rows)
    return shared


def cut_at_matrices(encoded: Encoded, n_matrices: int) -> Encoded:
    """`encoded`, a stack of so many matrices, with chunks of weights that end where matrices do.

    As it is where it is stored by columns or in another order, or where matrices do not end at whole bytes.
    """
    plain = (
        encoded.parameters.get("orientation", "rows") == "rows" and "class_sizes" not in encoded.parameters
    )
    weights = SCHEMES[encoded.scheme].weights if encoded.scheme in SCHEMES else ""
    if not plain or n_matrices < 1 or any(stream.role == "channel_order" for stream in encoded.streams):
        return encoded
    return replace(
        encoded,
        streams=tuple(
            _cut(stream, n_matrices) if stream.role == weights else stream for stream in encoded.streams
        ),
    )


def _cut(stream: StreamData, n_matrices: int) -> StreamData:
    size, bits = stream.elements.size // n_matrices, wire.DTYPES[stream.dtype].bits
    if not size or stream.sizes is not None or size * bits % 8:
        return stream
    sizes = chunk_sizes(size, bits, stream.row_elements)
    return replace(stream, sizes=tuple(sizes) * n_matrices)
