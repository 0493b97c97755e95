"""Codec rans: the package's own entropy coder (FORMAT.md 4.3). The loops are in spqfmt.kernels."""

import numpy as np

from spqfmt import wire
from spqfmt.codecs.base import HEAD_BYTES, Bytes
from spqfmt.errors import CorruptError
from spqfmt.kernels import backend, context

_STATE_BYTES = 4 * wire.RANS_LANES
_CONSTANT_BYTES = 4


class RansCodec:
    """Interleaved rANS over bytes with one frequency table a chunk."""

    name = "rans"
    id = wire.CODEC_RANS
    feature = "rans"
    is_native = True
    is_order0 = True
    constant_bytes = _CONSTANT_BYTES
    device_rate = "rans"

    def encode(self, raw: Bytes) -> bytes:
        """A rans chunk, in blocks as the context in force wants them; `raw` must not be empty."""
        return backend.current().rans_encode(raw, context.current().block_log2)

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

    def parts(self, stored: Bytes, raw_bytes: int) -> "RansParts":
        """Give parts of a chunk, decoded block by block."""
        return RansParts(stored, raw_bytes)


class RansParts:
    """A chunk some blocks of which are decoded: as a chunk of their own, with the same table.

    What stands before the blocks is checked with each of these, but for the directory, which is checked here.
    """

    def __init__(self, stored: Bytes, raw_bytes: int) -> None:
        self._raw_bytes = raw_bytes
        self._stored = stored
        self.constant: int | None = None
        if stored.size < 8 or stored[1] != wire.RANS_KIND_BLOCKS or stored[2] > wire.RANS_MAX_BLOCK_LOG2:
            symbol = np.empty(1, np.uint8)
            backend.current().rans_decode(stored, symbol)  # right only for a chunk of one symbol
            self.constant = int(symbol[0])
            return
        self._block_bytes = 1 << int(stored[2])
        self._head = 8 + -(-int.from_bytes(stored[6:8].tobytes(), "little") // 4) * 4
        first_block = self._head + 4 * -(-raw_bytes // self._block_bytes)
        if first_block > stored.size:
            raise CorruptError("rans block directory passes the end of the chunk")
        ends = np.frombuffer(stored[self._head : first_block].tobytes(), "<u4").astype(np.int64)
        self._borders = np.concatenate([np.array([first_block]), ends])
        misplaced = (np.diff(self._borders) < _STATE_BYTES) | (ends % 4 != 0)
        if misplaced.any() or self._borders[-1] != stored.size:
            raise CorruptError("rans block directory does not fit the chunk")

    def read(self, first: int, out: Bytes) -> None:
        """Whole blocks, and of the first and the last what is wanted."""
        if self.constant is not None:
            out[:] = self.constant
            return
        if not out.size:
            return
        size, stop = self._block_bytes, first + out.size
        low, high = first // size, -(-stop // size)
        begin, end = low * size, min(high * size, self._raw_bytes)
        borders = self._borders[low : high + 1]
        ends = borders[1:] - borders[0] + self._head + 4 * (high - low)
        chunk = (
            self._stored[: self._head],
            ends.astype("<u4").view(np.uint8),
            self._stored[borders[0] : borders[-1]],
        )
        decoded = out if end - begin == out.size else np.empty(end - begin, np.uint8)
        backend.current().rans_decode(np.concatenate(chunk), decoded)
        if decoded is not out:
            out[:] = decoded[first - begin : stop - begin]


CODEC = RansCodec()
