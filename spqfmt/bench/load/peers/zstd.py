"""Zstandard level 1 over the same bytes, a frame a MiB, decoded on as many threads."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import zstandard

from spqfmt.bench.load.base import Loader, Payload, read_into
from spqfmt.codecs.base import Bytes
from spqfmt.codecs.chunks import TARGET_CHUNK_BYTES


class ZstdLoader(Loader):
    """Reads the file, then decodes its frames; where each lies is known from writing."""

    def __init__(self, path: Path, payload: Payload, threads: int) -> None:
        super().__init__("zstd level 1", path, payload, threads)
        compressor = zstandard.ZstdCompressor(level=1)
        frames = [
            compressor.compress(array.raw[i : i + TARGET_CHUNK_BYTES].data)
            for array in payload.arrays
            for i in range(0, array.raw.size, TARGET_CHUNK_BYTES)
        ]
        path.write_bytes(b"".join(frames))
        self._ends = np.cumsum([len(frame) for frame in frames]).tolist()
        self._stored = np.empty(self._ends[-1], np.uint8)

    def load(self) -> None:
        read_into(self.path, [self._stored])
        targets = [
            out[i : i + TARGET_CHUNK_BYTES]
            for out in self.out
            for i in range(0, out.size, TARGET_CHUNK_BYTES)
        ]
        begins = [0, *self._ends[:-1]]
        jobs = list(zip(begins, self._ends, targets, strict=True))
        if self.threads == 1:
            self._decode(jobs)
            return
        with ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(self._decode, [jobs[k :: self.threads] for k in range(self.threads)]))

    def _decode(self, jobs: list[tuple[int, int, Bytes]]) -> None:
        decompressor = zstandard.ZstdDecompressor()
        for begin, end, target in jobs:
            with decompressor.stream_reader(self._stored[begin:end].data, read_size=end - begin) as reader:
                reader.readinto(target.data)


def make(payload: Payload, folder: Path, threads: int) -> list[Loader]:
    """Make the one loader that there is."""
    return [ZstdLoader(folder / f"{payload.name}-{threads}.zst", payload, threads)]
