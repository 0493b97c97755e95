"""The codes stream: orientation, channel order and table classes (FORMAT.md 5.3 and 5.6)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from spqfmt.codecs.chunks import chunk_sizes
from spqfmt.codecs.elements import Elements
from spqfmt.errors import CorruptError
from spqfmt.kernels.json_text import Wanted
from spqfmt.records import TensorRecord
from spqfmt.schemes.base import Roles, StreamData, Streamed, check_int
from spqfmt.schemes.tiles import Channels, blocks, runs
from spqfmt.schemes.trellis import unfolded
from spqfmt.wire import DTYPES

PARAMETERS: Mapping[str, Wanted] = {"orientation": "scalar", "class_sizes": "integers"}
INDEX_DTYPES = ("u16", "u32")
_SEEN_AT_ONCE = 1 << 23


def by_columns(record: TensorRecord) -> bool:
    """Whether the weights are stored column after column."""
    return record.parameters.get("orientation") == "columns"


def reorders_rows(record: TensorRecord) -> bool:
    """Whether the weights are stored by rows, in another order of the rows."""
    return "channel_order" in record.by_role and not by_columns(record)


@dataclass(frozen=True)
class Layout:
    """In what order codes are stored.

    `channel_order`: int array, stored channel -> channel. `class_sizes`: channels of each table class.
    """

    orientation: str = "rows"
    channel_order: NDArray[np.int64] | None = None
    class_sizes: tuple[int, ...] | None = None

    def encode(self, codes: Elements, dtype: str) -> tuple[dict[str, object], tuple[StreamData, ...]]:
        """Parameters and streams for codes of shape [rows, columns]."""
        channels = codes if self.orientation == "rows" else codes.T
        parameters: dict[str, object] = {"orientation": self.orientation}
        streams: tuple[StreamData, ...] = ()
        if self.channel_order is not None:
            channels = channels[self.channel_order]
            streams = (index_stream("channel_order", self.channel_order),)
        sizes = None
        n, width = channels.shape
        if self.class_sizes is not None:
            parameters["class_sizes"] = list(self.class_sizes)
            bits = DTYPES[dtype].bits
            sizes = tuple(s for c in self.class_sizes for s in chunk_sizes(c * width, bits, width))
        elements = np.ascontiguousarray(channels).reshape(n * width)
        return parameters, (
            StreamData(role="codes", dtype=dtype, elements=elements, row_elements=width, sizes=sizes),
            *streams,
        )


def index_stream(role: str, indices: NDArray[np.int64]) -> StreamData:
    """A stream of channel numbers in the narrower dtype that holds them."""
    dtype, carrier = ("u16", np.uint16) if indices.size <= 1 << 16 else ("u32", np.uint32)
    return StreamData(role, dtype, indices.astype(carrier))


def check(
    record: TensorRecord,
    roles: Roles,
    dtypes: tuple[str, ...],
    role: str = "codes",
    orientation: object = None,
) -> None:
    """Orientation (`orientation` where it is left out), codes or values, channel order and class sizes of a record."""
    rows, columns = record.matrix_shape
    orientation = record.parameters.get("orientation", orientation)
    if orientation not in ("rows", "columns"):  # not a set: it would hash what a file holds
        raise CorruptError(f"tensor {record.name!r}: orientation is neither rows nor columns")
    n, width = (rows, columns) if orientation == "rows" else (columns, rows)
    codes = roles.required(role, dtypes, rows * columns)
    if codes.same_as is not None:
        raise CorruptError(f"tensor {record.name!r}: {role} must be the tensor's own")
    roles.optional("channel_order", INDEX_DTYPES, n)
    if "class_sizes" not in record.parameters:
        return
    class_sizes = record.parameters["class_sizes"]
    if not isinstance(class_sizes, list):
        raise CorruptError(f"tensor {record.name!r}: class_sizes is not a list")
    sizes = [check_int(size, "a class size", 1) for size in class_sizes]
    if sum(sizes) != n:
        raise CorruptError(f"tensor {record.name!r}: class_sizes do not add up to {n} channels")
    ends = set(codes.chunks.ends.tolist())
    border = 0
    for size in sizes:
        border += size * width
        if border not in ends:
            raise CorruptError(f"tensor {record.name!r}: a chunk holds {role} of two classes")


class Tile(NamedTuple):
    """Codes of some rows and columns of the matrix, [rows, columns], contiguous: ranges, or numbers in any order."""

    rows: Channels
    columns: Channels
    codes: Elements


def tiles(
    record: TensorRecord,
    fetch: Streamed,
    rows: range,
    columns: range,
    *,
    most: int,
    unit: int = 1,
    role: str = "codes",
) -> Iterator[Tile]:
    """All codes of these rows and (stored) columns in tiles of at most `most`, in the order in which they are stored.

    Tiles by rows hold all the columns or are a part of one row, cut at multiples of `unit` or between two of them.
    """
    n_rows, n_columns = record.matrix_shape
    fetch = unfolded(record, fetch)
    by_rows = not by_columns(record)
    channels, positions, n, width = (
        (rows, columns, n_rows, n_columns) if by_rows else (columns, rows, n_columns, n_rows)
    )
    order = read_order(record, fetch, "channel_order", n)
    unit = unit if by_rows else 1
    if order is None:
        parts: Iterator[tuple[Channels, range, Elements]] = blocks(
            record, role, fetch, channels=channels, positions=positions, width=width, most=most, unit=unit
        )
    else:
        parts = _ordered(
            record,
            role,
            fetch,
            order=order,
            channels=channels,
            positions=positions,
            width=width,
            most=most,
            unit=unit,
        )
    for some, at, codes in parts:
        yield (
            Tile(some, at, np.ascontiguousarray(codes))
            if by_rows
            else Tile(at, some, np.ascontiguousarray(codes.T))
        )


def _ordered(
    record: TensorRecord,
    role: str,
    fetch: Streamed,
    order: NDArray[np.unsignedinteger],
    channels: range,
    positions: range,
    width: int,
    most: int,
    unit: int,
) -> Iterator[tuple[Channels, range, Elements]]:
    """Blocks of channels that are stored in another order; those that lie apart are put together."""
    stored = [range(order.size)]
    if len(channels) < order.size:
        stored_at = np.empty_like(order)
        stored_at[order] = np.arange(order.size, dtype=order.dtype)
        stored = list(runs(np.sort(stored_at[channels.start : channels.stop])))
    waiting: list[Elements] = []
    numbers: list[NDArray[np.unsignedinteger]] = []
    for run in stored:
        for some, at, codes in blocks(
            record, role, fetch, channels=run, positions=positions, width=width, most=most, unit=unit
        ):
            if len(at) < len(positions):
                # A part of one long channel: nothing can be put beside it.
                yield order[some.start : some.stop], at, codes
                continue
            waiting.append(codes)
            numbers.append(order[some.start : some.stop])
            # Channels that lie apart come one by one, and tiles of one would be slow to dequantize.
            if sum(part.size for part in waiting) > most // 2:
                yield np.concatenate(numbers), positions, np.concatenate(waiting)
                waiting, numbers = [], []
    if waiting:
        yield np.concatenate(numbers), positions, np.concatenate(waiting)


def verify(record: TensorRecord, fetch: Streamed) -> None:
    """The channel order must be a permutation."""
    if "channel_order" in record.by_role:
        check_permutation(record, fetch, "channel_order", record.matrix_shape[1 if by_columns(record) else 0])


def check_permutation(record: TensorRecord, fetch: Streamed, role: str, n: int) -> None:
    """Raise CorruptError unless a stream of channel numbers is a permutation of 0 .. n-1."""
    for first in range(0, n, _SEEN_AT_ONCE):
        seen = np.zeros(min(_SEEN_AT_ONCE, n - first), bool)
        for numbers, times in fetch.runs(role):
            here = numbers[(numbers >= first) & (numbers < first + seen.size)]
            seen[here.astype(np.int64) - first] = True
            if times > 1:
                break  # a number is there twice, so that another is missing
        if not seen.all():
            raise CorruptError(f"tensor {record.name!r}: {role} is not a permutation")


def read_order(
    record: TensorRecord, fetch: Streamed, role: str, n: int
) -> NDArray[np.unsignedinteger] | None:
    """A stream of channel numbers, checked to be a permutation of 0 .. n-1; None where there is none."""
    if role not in record.by_role:
        return None
    check_permutation(record, fetch, role, n)
    order: NDArray[np.unsignedinteger] = fetch(role)
    return order
