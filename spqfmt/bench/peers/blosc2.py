"""Blosc2: zstd in blocks, and LZ4 behind its bit shuffle. It holds the GIL, so its threads are its own."""

import blosc2

from spqfmt.bench.contender import Contender, Stored
from spqfmt.codecs.base import Bytes


class Blosc2:
    """One call over all the data."""

    def __init__(self, codec: blosc2.Codec, filter_: blosc2.Filter, element_bytes: int, threads: int) -> None:
        self._compress = blosc2.CParams(
            codec=codec, clevel=5, typesize=element_bytes, nthreads=threads, filters=[filter_]
        )
        self._decompress = blosc2.DParams(nthreads=threads)

    def encode(self, raw: Bytes) -> Stored:
        return bytes(blosc2.compress2(raw, cparams=self._compress))

    def decode(self, stored: Stored, out: Bytes) -> None:
        blosc2.decompress2(stored, dst=out, dparams=self._decompress)


def make(element_bytes: int, threads: int) -> list[Contender]:
    """Bytes need no shuffle before an entropy coder; wider elements do."""
    shuffle = blosc2.Filter.NOFILTER if element_bytes == 1 else blosc2.Filter.SHUFFLE
    zstd = Blosc2(blosc2.Codec.ZSTD, shuffle, element_bytes, threads)
    lz4 = Blosc2(blosc2.Codec.LZ4, blosc2.Filter.BITSHUFFLE, element_bytes, threads)
    return [
        Contender("blosc2", "zstd", 0, zstd, whole=True),
        Contender("blosc2", "lz4 bitshuffle", 0, lz4, whole=True),
    ]
