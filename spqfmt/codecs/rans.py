"""Codec rans: the package's own entropy coder (FORMAT.md 4.3). The loops are in spqfmt.kernels."""

from spqfmt.codecs.base import Bytes
from spqfmt.kernels import backend


class RansCodec:
    """Interleaved rANS over bytes with one frequency table a chunk."""

    name = "rans"

    def encode(self, raw: Bytes) -> bytes:
        """A rans chunk; `raw` must not be empty."""
        return backend.current().rans_encode(raw)

    def decode(self, stored: Bytes, out: Bytes) -> None:
        """Decode with the backend in use."""
        backend.current().rans_decode(stored, out)


CODEC = RansCodec()
