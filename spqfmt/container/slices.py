"""A part of a tensor's matrix, rows or columns of it, seen as a tensor of its own: what one rank holds of a layer.

As a matrix of a stack (spqfmt.container.stacks) it gets a record with the chunks that hold it and no others, so that it
is read, decoded and multiplied alone. It begins and ends where a chunk and a group do, so that it may be more than what
was wanted.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from spqfmt import wire
from spqfmt.codecs.chunks import chunk_sizes
from spqfmt.codecs.elements import Elements
from spqfmt.records import Stream, TensorRecord
from spqfmt.schemes.base import Encoded, StreamData
from spqfmt.schemes.codes import by_columns
from spqfmt.schemes.outliers import rows_per_band
from spqfmt.schemes.registry import SCHEMES, packed_scheme
from spqfmt.schemes.sides import PackedScheme, Sides
from spqfmt.schemes.trellis import tile_chunks, trellis_rows


@dataclass(frozen=True)
class SliceRecord(TensorRecord):
    """Rows and columns of the matrix of `whole`, of one of which it has all."""

    whole: TensorRecord = field(kw_only=True)
    rows: range = field(kw_only=True)
    columns: range = field(kw_only=True)


def held_channels(record: TensorRecord, wanted: range, *, of_columns: bool) -> tuple[range, str]:
    """The fewest rows, or columns, with those that are wanted, that a slice can have; why there are more, or nothing.

    They are all where that is how the tensor is stored.
    """
    n, width = reversed(record.matrix_shape) if of_columns else record.matrix_shape
    everything, weights = range(n), record.by_role[SCHEMES[record.scheme].weights]
    if record.view is not None or record.transposed or len(record.shape) != 2:
        return everything, "its matrix is not the tensor"
    if by_columns(record) != of_columns:
        return everything, "it is stored by rows" if of_columns else "it is stored by columns"
    if "channel_order" in record.by_role or (of_columns and "permutation" in record.by_role):
        return everything, "it is stored in another order"
    if trellis_rows(record) is not None and "class_sizes" in record.parameters:
        return everything, "it is stored in paths through classes of rows"
    unit, bits = (
        packed_scheme(record).slice_unit(record, of_columns=of_columns),
        wire.DTYPES[weights.dtype].bits,
    )
    ends = weights.chunks.ends
    borders = ends[(ends % width == 0) & (ends * bits % 8 == 0)] // width
    borders = np.unique(np.concatenate([[0, n], borders[borders % unit == 0]]))
    first = int(borders[np.searchsorted(borders, wanted.start, "right") - 1])
    stop = int(borders[np.searchsorted(borders, wanted.stop, "left")])
    held = range(first, stop)
    return held, "" if held == wanted else "its chunks or groups do not end where a rank's part does"


def slice_of(record: TensorRecord, held: range, *, of_columns: bool) -> TensorRecord:
    """The slice of channels that `held_channels` gives; the record itself where these are all."""
    n_rows, n_columns = record.matrix_shape
    if len(held) == (n_columns if of_columns else n_rows):
        return record
    rows, columns = (range(n_rows), held) if of_columns else (held, range(n_columns))
    place = f":, {held.start}:{held.stop}" if of_columns else f"{held.start}:{held.stop}"
    known = {name: getattr(record, name) for name in ("dtype", "scheme", "method", "parameters")}
    known |= {
        "activation_clamp": record.activation_clamp,
        "activation_quantization": record.activation_quantization,
    }
    return SliceRecord(
        name=f"{record.name}[{place}]",
        shape=(len(rows), len(columns)),
        streams=tuple(_streams_of(record, rows, columns)),
        whole=record,
        rows=rows,
        columns=columns,
        **known,
    )


def _streams_of(record: TensorRecord, rows: range, columns: range) -> Iterator[Stream]:
    """Streams with the chunks of the weights, and the numbers of elements of all others."""
    sizes = packed_scheme(record).slice_sizes(record, rows, columns)
    n_rows, n_columns = record.matrix_shape
    held, width = (columns, n_rows) if len(rows) == n_rows else (rows, n_columns)
    begin, end = held.start * width, held.stop * width
    for stream in record.streams:
        if stream.role == SCHEMES[record.scheme].weights:
            chunks = stream.chunks.within(begin, end).counted_from(begin)
            yield Stream(stream.role, stream.dtype, end - begin, chunks)
        elif stream.role in {"outlier_gaps", "outlier_values"}:
            size = rows_per_band(record)
            bands = slice(rows.start // size, -(-rows.stop // size))
            yield Stream(stream.role, stream.dtype, int(stream.chunks.n_elements[bands].sum()))
        else:
            yield Stream(stream.role, stream.dtype, sizes.get(stream.role, stream.n))


def slice_sides(sides: Sides, record: SliceRecord) -> Sides:
    """What a slice has of the sides of its tensor, in memory of its own."""
    return packed_scheme(record).slice_sides(sides, record, record.rows, record.columns)


def laid_for_ranks(record: TensorRecord, encoded: Encoded, n_ranks: int, *, of_columns: bool) -> Encoded:
    """`encoded` with its weights stored so that each of so many ranks reads its rows, or its columns, alone.

    That is in order, along these, in chunks that end where a rank's part does, or a group about there. As it is where
    the matrix is not the tensor's, or its columns are permuted and are to be cut. `record` is its own.
    """
    scheme = SCHEMES.get(record.scheme)
    permuted = (
        any(stream.role == "permutation" for stream in encoded.streams) or "permutation" in encoded.same_as
    )
    is_matrix = len(record.shape) == 2 and 0 not in record.shape and not record.transposed
    if not isinstance(scheme, PackedScheme) or not is_matrix or record.view is not None:
        return encoded
    if of_columns and permuted:
        return encoded
    has_trellis = scheme.name == "uniform" and "trellis" in encoded.parameters
    if has_trellis:
        # A path is one down the rows as they are stored, in the classes that these have.
        roles = {stream.role for stream in encoded.streams}
        if of_columns or "class_sizes" in encoded.parameters or "channel_order" in roles:
            return encoded
    streams = {stream.role: stream for stream in encoded.streams}
    weights, order = streams[scheme.weights], streams.pop("channel_order", None)
    matrix = _matrix(weights, order, record)
    stored = matrix.T if of_columns else matrix
    bits, (n, width) = wire.DTYPES[weights.dtype].bits, stored.shape
    unit = scheme.slice_unit(record, of_columns=of_columns)
    while unit * width * bits % 8:
        unit *= 2
    cuts = {0, n}
    for rank in range(1, n_ranks):
        first = min(n, -(-n // n_ranks) * rank)
        cuts |= {first // unit * unit, min(n, -(-first // unit) * unit)}
    borders = sorted(cuts)
    sizes = [
        size
        for begin, end in pairwise(borders)
        for size in (
            tile_chunks(end - begin, unit, width)
            if has_trellis
            else chunk_sizes((end - begin) * width, bits, width)
        )
    ]
    orientation = "columns" if of_columns else "rows"
    parameters = {key: value for key, value in encoded.parameters.items() if key != "class_sizes"}
    if of_columns or "orientation" in parameters:
        parameters["orientation"] = orientation
    elements = np.ascontiguousarray(stored).reshape(-1)
    streams[scheme.weights] = replace(weights, elements=elements, row_elements=width, sizes=tuple(sizes))
    return replace(encoded, parameters=parameters, streams=tuple(streams.values()))


def laid_for_one(record: TensorRecord, encoded: Encoded) -> Encoded:
    """`encoded` as it is stored where no ranks share it: by rows, in chunks of the usual size.

    As it is where that is so, or where its channels have an order or classes: no rank could read a part of these.
    """
    roles = {stream.role for stream in encoded.streams}
    if "channel_order" in roles or "class_sizes" in encoded.parameters:
        return encoded
    laid = laid_for_ranks(record, encoded, 1, of_columns=False)
    if laid is encoded:
        return encoded
    if record.scheme == "dense":
        parameters = {key: value for key, value in laid.parameters.items() if key != "orientation"}
        laid = replace(laid, parameters=parameters)
    role = SCHEMES[record.scheme].weights
    [weights] = [stream for stream in laid.streams if stream.role == role]
    was = record.by_role[role].chunks.n_elements.tolist()
    stays = by_columns(record) == (laid.parameters.get("orientation") == "columns")
    return encoded if stays and list(weights.sizes or ()) == was else laid


def _matrix(weights: StreamData, order: StreamData | None, record: TensorRecord) -> Elements:
    """The weights as they are, [rows, columns]."""
    n_rows, n_columns = record.matrix_shape
    turned = by_columns(record)
    stored = weights.elements.reshape((n_columns, n_rows) if turned else (n_rows, n_columns))
    if order is not None:
        in_order = np.empty_like(stored)
        in_order[order.elements] = stored
        stored = in_order
    return stored.T if turned else stored
