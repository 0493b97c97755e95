"""LZ4 blocks: no entropy coder, so it shows what matching alone finds in codes."""

import lz4.block
import numpy as np

from spqfmt.bench.contender import Contender, Stored
from spqfmt.codecs.base import Bytes


class Lz4:
    """The bindings cannot decode into a given buffer: the copy is part of using them."""

    def encode(self, raw: Bytes) -> Stored:
        return bytes(lz4.block.compress(raw.data, store_size=False))

    def decode(self, stored: Stored, out: Bytes) -> None:
        decoded = lz4.block.decompress(stored, uncompressed_size=out.size)
        np.copyto(out, np.frombuffer(decoded, np.uint8))


def make(element_bytes: int, threads: int) -> list[Contender]:
    """Make LZ4 with its default acceleration."""
    return [Contender("lz4", "block", 0, Lz4())]
