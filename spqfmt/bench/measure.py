"""Rates of contenders over data sets: interleaved rounds, medians with the spread, every round trip checked."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from spqfmt import systems
from spqfmt.bench.contender import Contender, Make, Stored
from spqfmt.bench.data import ByteLayout, Dataset
from spqfmt.bench.rows import CodecRow, Rate
from spqfmt.codecs.base import Bytes
from spqfmt.codecs.chunks import TARGET_CHUNK_BYTES
from spqfmt.container.encode import MIN_SAVING
from spqfmt.errors import BackendError
from spqfmt.kernels import native

Plane: TypeAlias = tuple[Stored, bool]
"""Stored bytes, and whether they are coded (else raw)."""


@dataclass
class _Chunk:
    """A run of the raw bytes, where its decoded bytes go, and room for its planes."""

    raw: Bytes
    out: Bytes
    scratch: Bytes
    n_planes: int
    element_bytes: int

    def split(self) -> list[Bytes]:
        if self.n_planes == 1:
            return [self.raw]
        native.split_planes(self.raw, self.element_bytes, True, self.scratch)
        return self.planes()

    def planes(self) -> list[Bytes]:
        if self.n_planes == 1:
            return [self.out]
        return list(self.scratch.reshape(self.n_planes, -1))

    def merge(self) -> None:
        if self.n_planes > 1:
            native.merge_planes(self.scratch, self.element_bytes, True, self.out)


@dataclass
class _Cell:
    """One contender on one layout of one data set, ready to be timed."""

    data: Dataset
    layout: ByteLayout
    contender: Contender
    threads: int
    chunks: list[_Chunk]
    stored: list[list[Plane]] = field(default_factory=list)
    encode_s: list[float] = field(default_factory=list)
    decode_s: list[float] = field(default_factory=list)

    def encode_chunk(self, chunk: _Chunk) -> list[Plane]:
        return [self._encode_plane(plane) for plane in chunk.split()]

    def _encode_plane(self, plane: Bytes) -> Plane:
        # The writer's rule for every coder: what does not shrink is kept raw, and then decodes as a copy.
        stored = self.contender.coder.encode(plane)
        if stored is None or len(stored) >= plane.size * (1 - MIN_SAVING):
            return plane.data, False
        return stored, True

    def decode_chunk(self, chunk: _Chunk, planes: list[Plane]) -> None:
        for (stored, coded), out in zip(planes, chunk.planes(), strict=True):
            if coded:
                self.contender.coder.decode(stored, out)
            else:
                np.copyto(out, np.frombuffer(stored, np.uint8))
        chunk.merge()

    def keep(self) -> None:
        """Encode once and keep the result: raw planes are copied, since their memory is reused."""
        self.contender.select()
        for chunk in self.chunks:
            planes = self.encode_chunk(chunk)
            self.stored.append([(bytes(stored), coded) for stored, coded in planes])

    def check(self) -> None:
        """Decode once; BackendError if anything differs."""
        self.contender.select()
        for chunk, planes in zip(self.chunks, self.stored, strict=True):
            chunk.out.fill(0)
            self.decode_chunk(chunk, planes)
            if not np.array_equal(chunk.out, chunk.raw):
                name = f"{self.contender.codec} {self.contender.path}"
                raise BackendError(f"{name}: {self.data.name} does not survive the round trip")

    def time_round(self, pool: ThreadPoolExecutor) -> None:
        self.contender.select()
        self.encode_s.append(self._clock(pool, lambda k: self.encode_chunk(self.chunks[k])))
        self.decode_s.append(self._clock(pool, lambda k: self.decode_chunk(self.chunks[k], self.stored[k])))

    def _clock(self, pool: ThreadPoolExecutor, work: Callable[[int], object]) -> float:
        def share(first: int, step: int) -> None:
            for k in range(first, len(self.chunks), step):
                work(k)

        threads = 1 if self.contender.whole else self.threads
        started = time.perf_counter()
        others = [pool.submit(share, k, threads) for k in range(1, threads)]
        share(0, threads)
        for other in others:
            other.result()
        return time.perf_counter() - started

    def row(self) -> CodecRow:
        bits = 8 * sum(len(stored) for planes in self.stored for stored, _ in planes)
        return CodecRow(
            data=self.data.name,
            codec=self.contender.codec,
            path=self.contender.path,
            block_bytes=self.contender.block_bytes,
            threads=self.threads,
            layout=self.layout.name,
            encode=Rate.of(self.data.n_symbols, self.encode_s),
            decode=Rate.of(self.data.n_symbols, self.decode_s),
            bits_per_symbol=bits / self.data.n_symbols,
            entropy=self.data.entropy,
        )


def measure(
    data: Dataset, makers: Iterable[Make], thread_counts: Iterable[int], rounds: int
) -> list[CodecRow]:
    """Measure every contender that `makers` give on `data`, in its better layout.

    Raises BackendError if a decoder does not give back what was encoded.
    """
    makers, thread_counts = list(makers), list(thread_counts)
    cells = [cell for layout in data.layouts for cell in _cells(data, layout, makers, thread_counts)]
    for cell in cells:
        cell.keep()
        cell.check()
    with ThreadPoolExecutor(max(thread_counts)) as pool:
        for number in range(rounds):
            # Another order each round, so that nobody always runs behind the same neighbour.
            shift = number * len(cells) // rounds
            for cell in cells[shift:] + cells[:shift]:
                cell.time_round(pool)
    for cell in cells:
        cell.check()
    return better_layouts([cell.row() for cell in cells])


def _cells(
    data: Dataset, layout: ByteLayout, makers: Sequence[Make], thread_counts: Sequence[int]
) -> Iterator[_Cell]:
    out, scratch = np.empty_like(layout.raw), np.empty_like(layout.raw)
    out.fill(0)
    scratch.fill(0)
    coded_bytes = 1 if layout.planes else layout.element_bytes
    for threads in thread_counts:
        for contender in (c for make in makers for c in make(coded_bytes, threads)):
            size = layout.raw.size if contender.whole else TARGET_CHUNK_BYTES * layout.element_bytes
            chunks = [
                _Chunk(
                    raw=layout.raw[i : i + size],
                    out=out[i : i + size],
                    scratch=scratch[i : i + size],
                    n_planes=layout.element_bytes if layout.planes else 1,
                    element_bytes=layout.element_bytes,
                )
                for i in range(0, layout.raw.size, size)
            ]
            yield _Cell(data=data, layout=layout, contender=contender, threads=threads, chunks=chunks)


def better_layouts(rows: Iterable[CodecRow]) -> list[CodecRow]:
    """Keep each contender's better layout: the smaller one; within 2 % of that, the one that decodes faster."""
    by_contender: dict[tuple[object, ...], list[CodecRow]] = {}
    for row in rows:
        key = (row.data, row.codec, row.path, row.block_bytes, row.threads)
        by_contender.setdefault(key, []).append(row)
    kept = []
    for candidates in by_contender.values():
        smallest = min(row.bits_per_symbol for row in candidates)
        small = [row for row in candidates if row.bits_per_symbol <= 1.02 * smallest]
        kept.append(max(small, key=lambda row: row.decode.median))
    return kept


def thread_counts() -> list[int]:
    """One thread, and two where the process may run on two."""
    return [1, 2] if systems.usable_processors() > 1 else [1]
