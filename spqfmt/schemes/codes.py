"""The codes stream: orientation, channel order and table classes (FORMAT.md 5.3 and 5.6)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spqfmt.codecs.chunks import chunk_sizes
from spqfmt.codecs.elements import Elements
from spqfmt.errors import CorruptError
from spqfmt.kernels.json_text import Wanted
from spqfmt.records import TensorRecord
from spqfmt.schemes.base import Fetch, Roles, StreamData, check_int
from spqfmt.wire import DTYPES

PARAMETERS: Mapping[str, Wanted] = {"orientation": "scalar", "class_sizes": "integers"}
INDEX_DTYPES = ("u16", "u32")


@dataclass(frozen=True)
class Layout:
    """How codes are stored.

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
        return parameters, (StreamData("codes", dtype, elements, width, sizes), *streams)


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


def read(record: TensorRecord, fetch: Fetch, first_row: int, stop_row: int, role: str = "codes") -> Elements:
    """Codes (or values) of the wanted rows, [rows, columns], in the carrier of their dtype, contiguous."""
    n_rows, n_columns = record.matrix_shape
    by_rows = record.parameters.get("orientation", "rows") == "rows"
    if "channel_order" not in record.by_role:
        if by_rows:
            return fetch(role, first_row * n_columns, stop_row * n_columns).reshape(-1, n_columns)
        return _turned(fetch(role).reshape(n_columns, n_rows), first_row, stop_row)
    n_channels = n_rows if by_rows else n_columns
    order = read_permutation(record, fetch, "channel_order", n_channels)
    stored_at = np.empty(n_channels, np.int64)
    stored_at[order] = np.arange(n_channels)
    if not by_rows:
        return _turned(fetch(role).reshape(n_columns, n_rows)[stored_at], first_row, stop_row)
    wanted = stored_at[first_row:stop_row]
    if wanted.size == n_rows:
        return fetch(role).reshape(n_rows, n_columns)[wanted]
    rows = [fetch(role, at * n_columns, (at + 1) * n_columns) for at in wanted.tolist()]
    return np.stack(rows) if rows else fetch(role, 0, 0).reshape(0, n_columns)


def _turned(columns: Elements, first_row: int, stop_row: int) -> Elements:
    return np.ascontiguousarray(columns[:, first_row:stop_row].T)


def verify(record: TensorRecord, fetch: Fetch) -> None:
    """The channel order must be a permutation."""
    if "channel_order" in record.by_role:
        by_rows = record.parameters.get("orientation", "rows") == "rows"
        n_channels = record.matrix_shape[0 if by_rows else 1]
        read_permutation(record, fetch, "channel_order", n_channels)


def read_permutation(record: TensorRecord, fetch: Fetch, role: str, n: int) -> NDArray[np.int64]:
    """A stream of channel numbers, checked to be a permutation of 0 .. n-1."""
    order: NDArray[np.int64] = fetch(role).astype(np.int64)
    seen = np.zeros(n, bool)
    seen[order[order < n]] = True
    if not seen.all():
        raise CorruptError(f"tensor {record.name!r}: {role} is not a permutation")
    return order
