"""Codec rans: the package's own entropy coder (FORMAT.md 4.3). The loops are in spqfmt.kernels."""

from spqfmt import wire
from spqfmt.codecs.base import HEAD_BYTES, Bytes
from spqfmt.kernels import backend

_CONSTANT_BYTES = 4


class RansCodec:
    """Interleaved rANS over bytes with one frequency table a chunk."""

    name = "rans"
    id = wire.CODEC_RANS
    feature = "rans"
    is_native = True
    is_order0 = True
    device_rate = "rans"

    def encode(self, raw: Bytes) -> bytes:
        """A rans chunk; `raw` must not be empty."""
        return backend.current().rans_encode(raw)

    def decode(self, stored: Bytes, out: Bytes) -> None:
        """Decode with the backend in use."""
        backend.current().rans_decode(stored, out)

    def overhead_bytes(self, head: bytes, stored_bytes: int, raw_bytes: int) -> int:
        """Header, frequency table and block directory; a chunk of one symbol is nothing else."""
        if stored_bytes == _CONSTANT_BYTES:
            return stored_bytes
        n_table_bytes = int.from_bytes(head[6:8], "little")
        block_log2 = head[2] if len(head) == HEAD_BYTES else 0
        n_blocks = -(-raw_bytes >> block_log2)
        return -(-(HEAD_BYTES + n_table_bytes) // 4) * 4 + 4 * n_blocks


CODEC = RansCodec()
