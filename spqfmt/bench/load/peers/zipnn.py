"""ZipNN over each array, with its own threads."""

from pathlib import Path

import numpy as np

from spqfmt.bench.load.base import Loader, Payload, read_into
from spqfmt.bench.peers.zipnn import Zipnn


class ZipnnFile(Loader):
    """Reads the file, then decodes each array; where each lies is known from writing."""

    def __init__(self, path: Path, payload: Payload, threads: int) -> None:
        super().__init__("zipnn", path, payload, threads)
        self._coders = [Zipnn(array.element_bytes, threads) for array in payload.arrays]
        pairs = zip(self._coders, payload.arrays, strict=True)
        stored = [coder.encode(array.raw) for coder, array in pairs]
        path.write_bytes(b"".join(stored))
        self._stored = [np.empty(len(data), np.uint8) for data in stored]

    def load(self) -> None:
        read_into(self.path, self._stored)
        for coder, stored, out in zip(self._coders, self._stored, self.out, strict=True):
            coder.decode(stored.data, out)


def make(payload: Payload, folder: Path, threads: int) -> list[Loader]:
    """Make the one loader that there is: zipnn brings its own threads."""
    return [ZipnnFile(folder / f"{payload.name}-{threads}.znn", payload, threads)]
