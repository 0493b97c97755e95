"""ZipNN: Huffman over byte groups of float tensors. It holds the GIL, so its threads are its own."""

import numpy as np
from zipnn import ZipNN

from spqfmt.bench.contender import Contender, Stored
from spqfmt.codecs.base import Bytes

# By element bytes. All else goes in as an 8-bit float type: one group, no bits moved, the plain Huffman coder.
DTYPE = {2: "bfloat16", 4: "float32"}


class Zipnn:
    """One call over all the data."""

    def __init__(self, element_bytes: int, threads: int) -> None:
        self._dtype = DTYPE.get(element_bytes, "float8_e4m3fn")
        self._threads = threads

    def encode(self, raw: Bytes) -> Stored:
        # It reorders its input in place, hence the copy.
        return bytes(self._coder().compress(raw.tobytes()))

    def decode(self, stored: Stored, out: Bytes) -> None:
        np.copyto(out, np.frombuffer(self._coder().decompress(stored), np.uint8))

    def _coder(self) -> ZipNN:
        return ZipNN(bytearray_dtype=self._dtype, threads=self._threads)


def make(element_bytes: int, threads: int) -> list[Contender]:
    """Make zipnn with its default method, Huffman."""
    return [Contender("zipnn", "huffman", 0, Zipnn(element_bytes, threads), whole=True)]
