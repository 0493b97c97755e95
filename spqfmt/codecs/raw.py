"""Codec raw: the bytes themselves (FORMAT.md 4.1)."""

from spqfmt import wire
from spqfmt.codecs.base import Bytes
from spqfmt.errors import CorruptError


class RawCodec:
    """The bytes themselves."""

    name = "raw"
    id = wire.CODEC_RAW
    feature = None
    is_native = True
    is_order0 = False
    constant_bytes = 0
    device_rate = "move"

    def encode(self, raw: Bytes) -> bytes:
        """A copy of `raw`."""
        return raw.tobytes()

    def decode(self, stored: Bytes, out: Bytes) -> None:
        """Copy `stored` into `out`."""
        if stored.size != out.size:
            raise CorruptError(f"raw chunk has {stored.size} bytes instead of {out.size}")
        out[:] = stored

    def overhead_bytes(self, head: bytes, stored_bytes: int, raw_bytes: int) -> int:
        """None."""
        return 0

    def parts(self, stored: Bytes, raw_bytes: int) -> "RawParts":
        """Any part of `stored`."""
        if stored.size != raw_bytes:
            raise CorruptError(f"raw chunk has {stored.size} bytes instead of {raw_bytes}")
        return RawParts(stored)


class RawParts:
    """The bytes themselves."""

    constant: int | None = None

    def __init__(self, stored: Bytes) -> None:
        self._stored = stored

    def read(self, first: int, out: Bytes) -> None:
        """A copy."""
        out[:] = self._stored[first : first + out.size]


CODEC = RawCodec()
