""".spq: one thread reads the next segment while the one before is checked and decoded by the others."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from spqfmt import wire
from spqfmt.bench.file_data import stored_streams
from spqfmt.bench.load.base import Array, Loader, Payload, read_into
from spqfmt.codecs.base import Bytes
from spqfmt.codecs.elements import CARRIERS, to_planes
from spqfmt.codecs.registry import decode_into
from spqfmt.container import Reader
from spqfmt.errors import ChecksumError
from spqfmt.kernels import native
from spqfmt.records import PlaneChunk, Segment, TensorRecord


def payload_of(path: Path, name: str) -> Payload:
    """The decoded streams of a file, each once; codes narrower than a byte stay packed, as kernels take them."""
    with Reader(path) as reader:
        arrays = []
        for record, stream in stored_streams(reader.index.tensors):
            elements = reader.read_elements(record, stream.role)
            if wire.DTYPES[stream.dtype].bits < 8:
                elements = to_planes(elements, stream.dtype)[0]
            carrier = CARRIERS[stream.dtype].itemsize
            arrays.append(Array(f"{record.name}/{stream.role}", elements.view(np.uint8), carrier))
        weights = sum(record.n_weights for record in reader.index.tensors if record.tied_to is None)
        return Payload(name, weights, arrays)


class _Merge(NamedTuple):
    """Planes at `scratch_offset` become `raw_bytes` of elements at `out_offset`."""

    scratch_offset: int
    out_offset: int
    raw_bytes: int
    element_bytes: int
    rotate: bool


class _Work(NamedTuple):
    """What decoding one segment takes; offsets count from the segment's begin, or in the loader's memory."""

    segment: Segment
    native_jobs: NDArray[np.int64]
    zstd_jobs: list[tuple[PlaneChunk, int]]
    merges: list[_Merge]


class Spq(Loader):
    """Decodes into one block of memory: the streams one after the other, then room for one segment's planes."""

    def __init__(self, path: Path, payload: Payload, threads: int) -> None:
        super().__init__("spq", path, payload, threads)
        with Reader(path) as reader:
            longest = max(segment.end - segment.offset for segment in reader.index.segments)
            planes_bytes = max(
                sum(stream.raw_bytes for _, stream in stored_streams(_tensors(reader, segment)))
                for segment in reader.index.segments
            )
        sizes = [array.raw.size for array in payload.arrays]
        self._scratch_offset = sum(sizes)
        self._memory = np.ones(self._scratch_offset + planes_bytes, np.uint8)
        self.out = list(np.split(self._memory, np.cumsum(sizes)))[:-1]
        self._stored = [np.ones(longest, np.uint8) for _ in range(2)]

    def load(self) -> None:
        with Reader(self.path) as reader, ThreadPoolExecutor(self.threads + 1) as pool:
            work = list(self._plan(reader))
            ahead = pool.submit(self._fetch, work[0].segment, 0)
            for number, current in enumerate(work):
                stored = ahead.result()
                if number + 1 < len(work):
                    ahead = pool.submit(self._fetch, work[number + 1].segment, number + 1)
                self._decode(current, stored, pool)

    def _fetch(self, segment: Segment, number: int) -> Bytes:
        stored = self._stored[number % 2][: segment.end - segment.offset]
        read_into(self.path, [stored], segment.offset)
        return stored

    def _plan(self, reader: Reader) -> Iterator[_Work]:
        out_offset = 0
        for segment in reader.index.segments:
            jobs, zstd_jobs, merges = [], [], []
            scratch = self._scratch_offset
            for _, stream in stored_streams(_tensors(reader, segment)):
                dtype = wire.DTYPES[stream.dtype]
                for chunk in stream.chunks:
                    raw_bytes = sum(plane.raw_bytes for plane in chunk.planes)
                    at = out_offset
                    if len(chunk.planes) > 1:
                        merges.append(_Merge(scratch, out_offset, raw_bytes, dtype.bits // 8, dtype.rotate))
                        at, scratch = scratch, scratch + raw_bytes
                    for plane in chunk.planes:
                        if plane.codec == wire.CODEC_ZSTD:
                            zstd_jobs.append((plane, at))
                        else:
                            begin = plane.offset - segment.offset
                            jobs.append(
                                (begin, plane.stored_bytes, plane.codec, plane.crc32, at, plane.raw_bytes)
                            )
                        at += plane.raw_bytes
                    out_offset += raw_bytes
            yield _Work(segment, np.array(jobs, np.int64).reshape(-1, 6), zstd_jobs, merges)

    def _decode(self, work: _Work, stored: Bytes, pool: ThreadPoolExecutor) -> None:
        native.decode_chunks(stored, work.native_jobs, self._memory, self.threads)

        def decode_zstd(job: tuple[PlaneChunk, int]) -> None:
            plane, at = job
            begin = plane.offset - work.segment.offset
            data = stored[begin : begin + plane.stored_bytes]
            if native.crc32(data) != plane.crc32:
                raise ChecksumError("a chunk does not match its checksum", plane.offset)
            decode_into(plane.codec, data, self._memory[at : at + plane.raw_bytes])

        def merge(job: _Merge) -> None:
            planes = self._memory[job.scratch_offset :][: job.raw_bytes]
            out = self._memory[job.out_offset :][: job.raw_bytes]
            native.merge_planes(planes, job.element_bytes, job.rotate, out)

        if self.threads == 1:
            list(map(decode_zstd, work.zstd_jobs))
            list(map(merge, work.merges))
        else:
            list(pool.map(decode_zstd, work.zstd_jobs))
            list(pool.map(merge, work.merges))


def _tensors(reader: Reader, segment: Segment) -> Sequence[TensorRecord]:
    return reader.index.tensors[segment.first_tensor : segment.first_tensor + segment.n_tensors]
