"""pcodec, a numerical coder (binned tANS)."""

import numpy as np
from pcodec import ChunkConfig, standalone

from spqfmt.bench.contender import Contender, Stored
from spqfmt.codecs.base import Bytes


class Pcodec:
    """Sees elements of their own width, as pcodec wants them."""

    def __init__(self, element_bytes: int) -> None:
        self._dtype = np.dtype(f"u{element_bytes}")
        self._config = ChunkConfig(enable_8_bit=element_bytes == 1)

    def encode(self, raw: Bytes) -> Stored:
        return bytes(standalone.simple_compress(raw.view(self._dtype), self._config))

    def decode(self, stored: Stored, out: Bytes) -> None:
        standalone.simple_decompress_into(stored, out.view(self._dtype))


def make(element_bytes: int, threads: int) -> list[Contender]:
    """Make pcodec at its default level, 8."""
    return [Contender("pcodec", "level 8", 0, Pcodec(element_bytes))]
