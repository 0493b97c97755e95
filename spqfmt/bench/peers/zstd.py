"""Zstandard at its usual levels, a frame a chunk; the package's own `zstd` codec (64 KiB frames, literals only)."""

import threading

import numpy as np
import zstandard

from spqfmt import wire
from spqfmt.bench.contender import Contender, Stored
from spqfmt.codecs.base import Bytes
from spqfmt.codecs.zstd import CODEC


class ZstdContexts(threading.local):
    """A context serves one thread only."""

    def __init__(self, level: int) -> None:
        self._compressor = zstandard.ZstdCompressor(level=level)
        self._decompressor = zstandard.ZstdDecompressor()

    def encode(self, raw: Bytes) -> Stored:
        return self._compressor.compress(raw.data)

    def decode(self, stored: Stored, out: Bytes) -> None:
        # The reader decodes straight into `out`; decompress() would allocate, and fresh pages cost as much as decoding.
        with self._decompressor.stream_reader(stored, read_size=len(stored)) as reader:
            reader.readinto(out.data)


class Literals:
    """Codec `zstd` of the package, by its own encoder."""

    def encode(self, raw: Bytes) -> Stored:
        return CODEC.encode(raw)

    def decode(self, stored: Stored, out: Bytes) -> None:
        CODEC.decode(np.frombuffer(stored, np.uint8), out)


def make(element_bytes: int, threads: int) -> list[Contender]:
    """Levels 1 and 3, and literals only."""
    levels = [Contender("zstd", f"level {level}", 0, ZstdContexts(level)) for level in (1, 3)]
    return [*levels, Contender("zstd", "literals", wire.ZSTD_FRAME_RAW_BYTES, Literals())]
