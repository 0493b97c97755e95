"""The frozen records of a file's index (FORMAT.md section 3), shared by every layer that reads or writes one."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, NamedTuple, Self, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from spqfmt import wire

if TYPE_CHECKING:
    from spqfmt.container.source_records import Sources
from spqfmt.cached import cached_property

_Int64: TypeAlias = NDArray[np.int64]
_CHUNKS_AT_ONCE = 4096

FLOATS = frozenset({"f64", "f32", "f16", "bf16"})
"""Dtypes that models compute in; one-byte floats are for storing only."""


class PlaneChunk(NamedTuple):
    """One plane of one chunk: where its stored bytes lie and what they decode to."""

    offset: int
    stored_bytes: int
    raw_bytes: int
    codec: int
    crc32: int


class Chunk(NamedTuple):
    """A run of a stream's elements, from `first` on."""

    first: int
    n_elements: int
    planes: tuple[PlaneChunk, ...]


class Chunks(Sequence[Chunk]):
    """The chunks of a stream, in order, as arrays: a file of 100 kB may list half a million that hold nothing."""

    __slots__ = ("_rows", "_table")

    def __init__(self, rows: _Int64, table: _Int64) -> None:
        """`rows` are the records, int64[n, 1 + 3 planes]: elements, then stored_bytes, codec, crc32 of each plane.

        `table` is int64[n, 2 + planes]: the first element, raw_bytes of a plane, and the offset of each plane.
        """
        self._rows, self._table = rows, table

    @classmethod
    def of(cls, chunks: Iterable[Chunk]) -> Self:
        """Make a table of single chunks, which have one number of planes."""
        rows, table, planes = [], [], 1
        for chunk in chunks:
            planes = len(chunk.planes)
            rows.append(
                (chunk.n_elements, *(n for p in chunk.planes for n in (p.stored_bytes, p.codec, p.crc32)))
            )
            table.append((chunk.first, chunk.planes[0].raw_bytes, *(p.offset for p in chunk.planes)))
        return cls(
            np.array(rows, np.int64).reshape(-1, 1 + 3 * planes),
            np.array(table, np.int64).reshape(-1, 2 + planes),
        )

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, at: int) -> Chunk: ...
    @overload
    def __getitem__(self, at: slice) -> "Chunks": ...
    def __getitem__(self, at: int | slice) -> "Chunk | Chunks":
        if isinstance(at, slice):
            return Chunks(self._rows[at], self._table[at])
        return _chunk(self._rows[at].tolist(), self._table[at].tolist())

    def __iter__(self) -> Iterator[Chunk]:
        if len(self) <= _CHUNKS_AT_ONCE:
            yield from map(_chunk, self._rows.tolist(), self._table.tolist())
            return
        for at in range(0, len(self), _CHUNKS_AT_ONCE):
            some = slice(at, at + _CHUNKS_AT_ONCE)
            yield from map(_chunk, self._rows[some].tolist(), self._table[some].tolist())

    def within(self, first: int, stop: int) -> "Chunks":
        """Those that hold some of the elements `first` to `stop`."""
        if len(self._rows) == 1 and first == 0 < stop <= self._rows.item(0):
            return self
        begin = int(np.searchsorted(self._table[:, 0], first, "right")) - 1
        end = 0 if first >= stop else int(np.searchsorted(self._table[:, 0], stop, "left"))
        return self[max(0, begin) : end].held

    def counted_from(self, first: int) -> "Chunks":
        """The same chunks, of a stream that begins with element `first`."""
        table = self._table.copy()
        table[:, 0] -= first
        return Chunks(self._rows, table)

    @property
    def held(self) -> "Chunks":
        """Return the chunks but for the empty ones."""
        if self.n_elements.all():
            return self
        which = np.flatnonzero(self.n_elements)
        return Chunks(self._rows[which], self._table[which])

    @property
    def plane_bytes(self) -> list[int]:
        """Stored bytes of each plane, in the order of the file."""
        sizes: list[int] = self._rows[:, 1::3].ravel().tolist()
        return sizes

    def to_json(self) -> list[list[int]]:
        """The records as they stand in an index."""
        rows: list[list[int]] = self._rows.tolist()
        return rows

    @property
    def coded(self) -> "Chunks":
        """Those of which some plane is stored by another codec than raw."""
        which = np.flatnonzero((self._rows[:, 2::3] != wire.CODEC_RAW).any(1))
        return self if len(which) == len(self) else Chunks(self._rows[which], self._table[which])

    def alike(self, other: "Chunks") -> bool:
        """Whether the records are the same, wherever the chunks lie."""
        return np.array_equal(self._rows, other._rows)

    @property
    def n_elements(self) -> _Int64:
        """Number of elements of each chunk."""
        return self._rows[:, 0]

    @property
    def ends(self) -> _Int64:
        """The element behind the last one of each chunk."""
        return self._table[:, 0] + self._rows[:, 0]

    @property
    def end(self) -> int | None:
        """The byte behind the last plane; None where there is no chunk."""
        return self._table.item(-1) + self._rows.item(-3) if len(self._rows) else None

    @property
    def stored_bytes(self) -> int:
        """Stored bytes of all planes, padding between them not counted."""
        return int(self._rows[:, 1::3].sum())

    @property
    def raw_bytes(self) -> int:
        """Decoded bytes of all planes of all chunks."""
        return int(self._table[:, 1].sum()) * int(self._table.shape[1] - 2)

    @property
    def n_stored_planes(self) -> int:
        """Number of planes of all chunks that hold elements."""
        return int(np.count_nonzero(self.n_elements)) * int(self._table.shape[1] - 2)

    @property
    def codecs(self) -> set[int]:
        """Ids of the codecs of all planes."""
        return set(self._rows[:, 2::3].ravel().tolist())


def _chunk(row: list[int], place: list[int]) -> Chunk:
    first, raw_bytes, *offsets = place
    planes = [
        PlaneChunk(
            offset=offset, stored_bytes=row[k], raw_bytes=raw_bytes, codec=row[k + 1], crc32=row[k + 2]
        )
        for k, offset in zip(range(1, len(row), 3), offsets, strict=True)
    ]
    return Chunk(first, row[0], tuple(planes))


NO_CHUNKS = Chunks.of(())


@dataclass(frozen=True, slots=True)
class Stream:
    """One homogeneous array of a tensor. `same_as` is the number of the tensor that holds it instead."""

    role: str
    dtype: str
    n: int
    chunks: Chunks = NO_CHUNKS
    entropy_bits: tuple[int, ...] | None = None
    same_as: int | None = None

    @property
    def stored_bytes(self) -> int:
        """Bytes of all chunks, padding between them not counted."""
        return self.chunks.stored_bytes

    @property
    def raw_bytes(self) -> int:
        """Bytes that the chunks decode to."""
        return self.chunks.raw_bytes


@dataclass(frozen=True)
class TensorRecord:
    """What the index says of one tensor. `parameters` are the scheme's (FORMAT.md section 5)."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    scheme: str
    method: str = ""
    parameters: Mapping[str, object] = field(default_factory=dict)
    streams: tuple[Stream, ...] = ()
    tied_to: str | None = None
    transposed: bool = False
    activation_clamp: Mapping[str, object] | None = None
    activation_quantization: Mapping[str, object] | None = None
    view: tuple[int, ...] | None = None
    content: str | None = None
    origin: "Origin | None" = None

    @property
    def is_named(self) -> bool:
        """Whether its scheme is another maker's (FORMAT.md 5.8): no elements can be had of it."""
        return "/" in self.scheme

    @property
    def n_weights(self) -> int:
        """Number of elements of the tensor."""
        return prod(self.shape)

    @property
    def source_bytes(self) -> int:
        """Size of the tensor in its own dtype."""
        return dense_bytes(self.dtype, self.n_weights)

    @property
    def bf16_bytes(self) -> int:
        """Its size in BF16; the source's for what is no float of 16 or more bits."""
        return bf16_bytes(self.dtype, self.n_weights)

    @cached_property
    def matrix_shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix that uniform and grouped describe (FORMAT.md 5.1)."""
        shape = self.shape if self.view is None else self.view
        shape = (*shape[:-2], *reversed(shape[-2:])) if self.transposed else shape
        return (prod(shape[:-1]), shape[-1]) if shape else (1, 1)

    @property
    def stacked_rows(self) -> int:
        """Rows of each of the matrices that a tensor of more than two dimensions stacks (FORMAT.md 5.5)."""
        shape = self.shape if self.view is None else self.view
        return shape[-1 if self.transposed else -2] if len(shape) > 1 else 1

    @cached_property
    def by_role(self) -> Mapping[str, Stream]:
        """The tensor's streams by their role."""
        return {stream.role: stream for stream in self.streams}

    @cached_property
    def plane_bytes(self) -> tuple[int, ...]:
        """Stored bytes of each plane, in the order of the file."""
        return tuple(n for stream in self.streams for n in stream.chunks.plane_bytes)


@dataclass(frozen=True, slots=True)
class AssetRecord:
    """A small file of the model that travels with it (FORMAT.md section 7)."""

    name: str
    stream: Stream


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tensors that are read together: bytes `offset` to `end` of the file."""

    name: str
    first_tensor: int
    n_tensors: int
    offset: int
    end: int


@dataclass(frozen=True, slots=True)
class Shard:
    """Which of how many files this one is (FORMAT.md section 8)."""

    number: int
    count: int


class Origin(NamedTuple):
    """The foreign layout that a tensor was taken apart from (FORMAT.md 7.3)."""

    layout: str
    version: int


class TensorRecords(Sequence[TensorRecord]):
    """Tensor records by their number in the file, each made when it is asked for."""

    def __init__(self, make: Callable[[int], TensorRecord], numbers: range) -> None:
        self._make = make
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, at: int) -> TensorRecord: ...
    @overload
    def __getitem__(self, at: slice) -> "TensorRecords": ...
    def __getitem__(self, at: int | slice) -> "TensorRecord | TensorRecords":
        if isinstance(at, slice):
            return TensorRecords(self._make, self._numbers[at])
        return self._make(self._numbers[at])


class TensorsByName(Mapping[str, TensorRecord]):
    """Tensor records by name, in execution order, each made when it is asked for."""

    def __init__(self, tensors: TensorRecords, numbers: Mapping[str, int]) -> None:
        self._tensors = tensors
        self.numbers = numbers

    def __getitem__(self, name: str) -> TensorRecord:
        return self._tensors[self.numbers[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    def __contains__(self, name: object) -> bool:
        return name in self.numbers


@dataclass(frozen=True)
class Index:
    """All that a file says of itself. A tensor's record that breaks the format raises FormatError when it is made."""

    segment_alignment: int
    segments: tuple[Segment, ...]
    tensors: TensorRecords
    by_name: TensorsByName
    assets: tuple[AssetRecord, ...]
    metadata: Mapping[str, str]
    partial_plan: Mapping[str, object] | None = None
    shard: Shard | None = None
    chunk_alignment: int | None = None
    content: str | None = None
    sources: "Sources | None" = None
    json_of: Callable[[int], dict[str, object]] = field(default=lambda _: {}, compare=False)
    """A tensor's record, by its number, with all that stands in it."""

    def tensors_of(self, segment: Segment) -> TensorRecords:
        """Those of a segment, in order."""
        return self.tensors[segment.first_tensor : segment.first_tensor + segment.n_tensors]

    def segment_of(self, name: str) -> Segment:
        """The one that holds the tensor of this name."""
        number = self.by_name.numbers[name]
        return self.segments[bisect_right(self.segments, number, key=lambda s: s.first_tensor) - 1]


def bf16_bytes(dtype: str, n: int) -> int:
    """Size of so many elements in BF16; as they are for what is no float of 16 or more bits."""
    return 2 * n if dtype in FLOATS else dense_bytes(dtype, n)


def dense_bytes(dtype: str, n: int) -> int:
    """Size of so many elements, packed where they are narrower than a byte."""
    return -(-n * wire.DTYPES[dtype].bits // 8)


def main_dtype(records: Iterable[TensorRecord]) -> str:
    """The dtype of FLOATS that most weights have; f32 when there is none."""
    weights = Counter[str]()
    for record in records:
        if record.tied_to is None and record.dtype in FLOATS:
            weights[record.dtype] += record.n_weights
    return max(weights, key=lambda dtype: weights[dtype], default="f32")


def n_planes(dtype: str) -> int:
    """Planes of a stream of this dtype (FORMAT.md 3.2)."""
    return max(1, wire.DTYPES[dtype].bits // 8)


def chunk_raw_bytes(dtype: str, n_elements: int) -> int:
    """Bytes that one plane of a chunk decodes to (FORMAT.md 3.3)."""
    return -(-n_elements * min(wire.DTYPES[dtype].bits, 8) // 8)
