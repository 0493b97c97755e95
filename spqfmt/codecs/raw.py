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


CODEC = RawCodec()
