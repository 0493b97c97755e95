"""Codec raw: the bytes themselves (FORMAT.md 4.1)."""

from spqfmt import wire
from spqfmt.codecs.base import Bytes
from spqfmt.errors import CorruptError


class RawCodec:
    """The codec that leaves bytes as they are."""

    name = "raw"
    id = wire.CODEC_RAW
    feature = None
    is_native = True
    is_order0 = False
    constant_bytes = 0
    device_rate = "move"

    def encode(self, raw: Bytes) -> bytes:
        """Return a copy of `raw`."""
        return raw.tobytes()

    def decode(self, stored: Bytes, out: Bytes) -> None:
        """Copy `stored` into `out`."""
        if stored.size != out.size:
            raise CorruptError(f"raw chunk has {stored.size} bytes instead of {out.size}")
        out[:] = stored

    def overhead_bytes(self, head: bytes, stored_bytes: int, raw_bytes: int) -> int:
        """Return 0: nothing but the bytes is stored."""
        return 0

    def parts(self, stored: Bytes, raw_bytes: int) -> "RawParts":
        """Give parts of `stored`, any from anywhere."""
        if stored.size != raw_bytes:
            raise CorruptError(f"raw chunk has {stored.size} bytes instead of {raw_bytes}")
        return RawParts(stored)


class RawParts:
    """The bytes of a raw chunk."""

    constant: int | None = None

    def __init__(self, stored: Bytes) -> None:
        self._stored = stored

    def read(self, first: int, out: Bytes) -> None:
        """Copy the bytes from `first` on into `out`."""
        out[:] = self._stored[first : first + out.size]


CODEC = RawCodec()
