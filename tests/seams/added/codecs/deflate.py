"""A codec in one module: DEFLATE, decoded one chunk after the other."""

import zlib

import numpy as np

from spqfmt.codecs.base import Bytes
from spqfmt.errors import CorruptError


class DeflateCodec:
    name = "deflate"
    id = 200
    feature = None  # a real one has a bit in spec/registry.toml, so that readers without it refuse the file
    is_native = False
    is_order0 = False
    constant_bytes = 0
    device_rate = "move"

    def encode(self, raw: Bytes) -> bytes:
        return zlib.compress(raw.tobytes(), 1)

    def decode(self, stored: Bytes, out: Bytes) -> None:
        self.parts(stored, out.size).read(0, out)

    def overhead_bytes(self, head: bytes, stored_bytes: int, raw_bytes: int) -> int:
        return min(stored_bytes, 6)

    def parts(self, stored: Bytes, raw_bytes: int) -> "DeflateParts":
        try:
            raw = zlib.decompress(stored.tobytes())
        except zlib.error as error:
            raise CorruptError(f"deflate chunk: {error}") from error
        if len(raw) != raw_bytes:
            raise CorruptError(f"deflate chunk decodes to {len(raw)} bytes instead of {raw_bytes}")
        return DeflateParts(np.frombuffer(raw, np.uint8))


class DeflateParts:
    constant = None

    def __init__(self, raw: Bytes) -> None:
        self._raw = raw

    def read(self, first: int, out: Bytes) -> None:
        out[:] = self._raw[first : first + out.size]


CODEC = DeflateCodec()
