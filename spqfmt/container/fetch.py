"""Elements of a tensor's streams, in pieces: what is read takes memory, and what a chunk claims to hold does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from spqfmt import wire
from spqfmt.codecs.base import Bytes, Parts
from spqfmt.codecs.elements import CARRIERS, Elements, check_packed, from_planes, unit_of
from spqfmt.codecs.registry import CODECS_BY_ID
from spqfmt.codecs.tasks import side_by_side
from spqfmt.container import planes
from spqfmt.container.located import at_plane, located
from spqfmt.kernels import native
from spqfmt.records import Chunk, PlaneChunk, TensorRecord, chunk_raw_bytes

if TYPE_CHECKING:
    from spqfmt.container.reader import Reader

_WHOLE_BYTES = 8 << 20
"""Chunks of up to so many raw bytes are decoded whole, larger ones in pieces. Ours have 1 MiB a plane."""
_PIECE_BYTES = 4 << 20
_FEW_BYTES = 4 << 20
"""Files of up to so many bytes are decoded by one thread: what they claim to hold shall not cost that on each."""


_In = TypeVar("_In")


class OpenChunk:
    """A chunk whose checksums were compared, to be decoded piece by piece."""

    def __init__(self, reader: Reader, chunk: Chunk, dtype: str) -> None:
        self._reader, self._chunk, self._dtype = reader, chunk, dtype
        self._bits = wire.DTYPES[dtype].bits
        self._planes = [self._open(plane) for plane in chunk.planes]
        self._piece = _PIECE_BYTES // max(1, self._bits // 8)

    def _open(self, plane: PlaneChunk) -> Parts:
        with at_plane(plane):
            # Small ones are read once: what is read again may be something else by then.
            if plane.codec == wire.CODEC_RAW and plane.stored_bytes > _PIECE_BYTES:
                return _RawInFile(self._reader, plane)
            stored = np.empty(plane.stored_bytes, np.uint8)
            self._reader.read_stored(plane, stored)
            return CODECS_BY_ID[plane.codec].parts(stored, plane.raw_bytes)

    @property
    def is_constant(self) -> bool:
        """Whether each plane says that all its bytes are one."""
        return all(plane.constant is not None for plane in self._planes)

    def read(self, first: int, out: Elements) -> None:
        """Fill `out`, the elements' carrier, with those from `first` of the chunk on."""
        for at in range(0, out.size, self._piece):
            piece = out[at : at + self._piece]
            if self._bits < 8:
                self._read_packed(first + at, piece)
            else:
                self._read_bytes(first + at, piece)

    def _read_bytes(self, first: int, out: Elements) -> None:
        n, count = out.size, len(self._planes)
        target = out.view(np.uint8)
        scratch = target if count == 1 else np.empty(n * count, np.uint8)
        for number, plane in enumerate(self._planes):
            with at_plane(self._chunk.planes[number]):
                plane.read(first, scratch[number * n : (number + 1) * n])
        if count == 1:
            check_packed(target, self._dtype, n)
        else:
            native.merge_planes(scratch, count, wire.DTYPES[self._dtype].rotate, target)

    def _read_packed(self, first: int, out: Elements) -> None:
        skipped = first % unit_of(self._bits)
        begin = first - skipped
        end = min(self._chunk.n_elements, -(-(first + out.size) // unit_of(self._bits)) * unit_of(self._bits))
        packed = np.empty(chunk_raw_bytes(self._dtype, end - begin), np.uint8)
        with at_plane(self._chunk.planes[0]):
            self._planes[0].read(begin * self._bits // 8, packed)
        elements = np.empty(end - begin, out.dtype)
        from_planes(packed, self._dtype, elements.size, elements)
        out[:] = elements[skipped : skipped + out.size]

    def runs(self) -> Iterator[tuple[Elements, int]]:
        """All elements in order: some, and how many times these follow each other."""
        n = self._chunk.n_elements
        if self.is_constant:
            unit = min(n, unit_of(self._bits))
            elements = np.empty(unit + n % unit, CARRIERS[self._dtype])
            self.read(n - n % unit, elements[unit:])
            self.read(0, elements[:unit])
            yield elements[:unit], n // unit
            if n % unit:
                yield elements[unit:], 1
            return
        for first in range(0, n, self._piece):
            piece = np.empty(min(self._piece, n - first), CARRIERS[self._dtype])
            self.read(first, piece)
            yield piece, 1


class _RawInFile:
    """A plane of codec raw: read where it is wanted, once all of it was compared with its checksum."""

    constant: int | None = None

    def __init__(self, reader: Reader, plane: PlaneChunk) -> None:
        self._reader, self._offset = reader, plane.offset
        crc32 = 0
        for at in range(0, plane.stored_bytes, _PIECE_BYTES):
            piece = np.empty(min(_PIECE_BYTES, plane.stored_bytes - at), np.uint8)
            reader.read_into(plane.offset + at, piece)
            crc32 = native.crc32(piece, crc32)
        planes.compare(crc32, plane.crc32)

    def read(self, first: int, out: Bytes) -> None:
        self._reader.read_into(self._offset + first, out)


class StreamFetch:
    """The streams of one tensor. For one thread; of each it remembers the chunk that it has last read a piece of."""

    def __init__(self, reader: Reader, record: TensorRecord) -> None:
        self._reader, self._record = reader, record
        self._open: dict[str, tuple[Chunk, OpenChunk]] = {}

    def __call__(self, role: str, first: int = 0, stop: int | None = None) -> Elements:
        """Elements `first` to `stop` of a stream, decoding only the chunks that hold them, side by side."""
        stream = self._reader.owner(self._record.by_role[role])
        stop = stream.n if stop is None else stop
        out = np.empty(max(0, stop - first), CARRIERS[stream.dtype])
        self.into(role, first, out)
        return out

    def into(self, role: str, first: int, out: Elements) -> None:
        """Fill `out`, the carrier, contiguous, with the elements from `first` on."""
        stream = self._reader.owner(self._record.by_role[role])
        stop = first + out.size
        whole: list[Chunk] = []
        for chunk in stream.chunks.within(first, stop):
            low, high = max(first, chunk.first), min(stop, chunk.first + chunk.n_elements)
            if high - low == chunk.n_elements and is_small(chunk):
                whole.append(chunk)
                continue
            with self._located(role, chunk):
                self._piece(role, stream.dtype, chunk).read(
                    low - chunk.first, out[low - first : high - first]
                )

        def read(chunk: Chunk) -> None:
            with self._located(role, chunk):
                at = chunk.first - first
                self._reader.read_chunk(chunk, stream.dtype, out[at : at + chunk.n_elements])

        each_chunk(self._reader, read, whole)

    def runs(self, role: str, first: int = 0, stop: int | None = None) -> Iterator[tuple[Elements, int]]:
        """The elements of the chunks from element `first` to `stop` on, which must be where chunks begin and end.

        They come as some elements in order, and how many times these follow each other.
        """
        stream = self._reader.owner(self._record.by_role[role])
        itemsize = CARRIERS[stream.dtype].itemsize
        begin = end = 0
        for chunk in stream.chunks.within(first, stream.n if stop is None else stop):
            together = is_small(chunk) and not _says_constant(chunk)
            if end > begin and (
                not together or (chunk.first + chunk.n_elements - begin) * itemsize > _WHOLE_BYTES
            ):
                yield self(role, begin, end), 1
                begin = end
            if together:
                begin = begin if end > begin else chunk.first
                end = chunk.first + chunk.n_elements
            else:
                with self._located(role, chunk):
                    yield from OpenChunk(self._reader, chunk, stream.dtype).runs()
        if end > begin:
            yield self(role, begin, end), 1

    def _piece(self, role: str, dtype: str, chunk: Chunk) -> OpenChunk:
        last = self._open.get(role)
        if last is None or last[0].first != chunk.first:
            last = self._open[role] = chunk, OpenChunk(self._reader, chunk, dtype)
        return last[1]

    def _located(self, role: str, chunk: Chunk) -> AbstractContextManager[None]:
        return located(self._reader.path, f"tensor {self._record.name!r}, {role}", chunk)


def is_small(chunk: Chunk) -> bool:
    """Whether the chunk is decoded as a whole."""
    return sum(plane.raw_bytes for plane in chunk.planes) <= _WHOLE_BYTES


def _says_constant(chunk: Chunk) -> bool:
    return all(0 < plane.stored_bytes == CODECS_BY_ID[plane.codec].constant_bytes for plane in chunk.planes)


def each_chunk(reader: Reader, work: Callable[[_In], object], items: Sequence[_In]) -> None:
    """`work` on each, side by side where the file is large enough to deserve it."""
    if reader.file_bytes <= _FEW_BYTES:
        for item in items:
            work(item)
    else:
        side_by_side(work, items)
