"""Codec raw: the bytes themselves (FORMAT.md 4.1)."""

from spqfmt.codecs.base import Bytes
from spqfmt.errors import CorruptError


class RawCodec:
    """The bytes themselves."""

    name = "raw"

    def encode(self, raw: Bytes) -> bytes:
        """A copy of `raw`."""
        return raw.tobytes()

    def decode(self, stored: Bytes, out: Bytes) -> None:
        """Copy `stored` into `out`."""
        if stored.size != out.size:
            raise CorruptError(f"raw chunk has {stored.size} bytes instead of {out.size}")
        out[:] = stored


CODEC = RawCodec()
