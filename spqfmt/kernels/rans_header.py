"""What stands before the blocks of a rans chunk (FORMAT.md 4.3), read and checked in the document's order."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spqfmt import wire
from spqfmt.errors import CorruptError, UnsupportedError
from spqfmt.kernels.native import Buffer

GROUP = wire.RANS_LANES * wire.RANS_SYMBOLS_PER_LANE
TOTAL = 1 << wire.RANS_FREQUENCY_BITS
STATE_BYTES = 4 * wire.RANS_LANES


@dataclass(frozen=True, eq=False)
class RansHeader:
    """What the checked header of a chunk says.

    `symbol` is that of a chunk of one symbol, which has no blocks; else None. `frequencies` is int64[256]. Block `b`
    lies at bytes begins[b] to ends[b] of the chunk (int64[n_blocks]) and holds n_symbols[b] symbols.
    """

    symbol: int | None
    frequencies: NDArray[np.int64]
    begins: NDArray[np.int64]
    ends: NDArray[np.int64]
    n_symbols: NDArray[np.int64]


def read_header(src: Buffer, raw_bytes: int) -> RansHeader:
    """The header of a chunk of `raw_bytes` symbols. CorruptError or UnsupportedError says which rule it breaks."""
    chunk = np.frombuffer(src, np.uint8).data
    check(raw_bytes > 0, "rans chunk of no symbols")
    check(len(chunk) >= 4, "rans chunk is shorter than its header")
    coder, kind, block_log2, symbol = chunk[:4]
    if coder != wire.RANS_CODER_QUAD:
        raise UnsupportedError(f"unknown rans coder {coder}", f"rans coder {coder}")
    if kind == wire.RANS_KIND_CONSTANT:
        check(block_log2 == 0 and len(chunk) == 4, "constant rans chunk with more than its symbol")
        none = np.empty(0, np.int64)
        return RansHeader(symbol=symbol, frequencies=none, begins=none, ends=none, n_symbols=none)
    check(kind == wire.RANS_KIND_BLOCKS, f"unknown kind {kind} of rans chunk")
    check(wire.RANS_MIN_BLOCK_LOG2 <= block_log2 <= wire.RANS_MAX_BLOCK_LOG2, "rans block_log2 is not 7..16")
    check(symbol == 0, "reserved byte of the rans header is not zero")
    frequencies, directory = _read_frequencies(chunk)
    block_size = 1 << block_log2
    n_blocks = -(-raw_bytes // block_size)
    first_block = directory + 4 * n_blocks
    check(first_block <= len(chunk), "rans block directory passes the end of the chunk")
    ends = np.frombuffer(chunk[directory:first_block], "<u4").astype(np.int64)
    begins = np.concatenate(([first_block], ends[:-1]))
    check(bool((ends % 4 == 0).all()), "end of a rans block is not a multiple of 4")
    check(bool((ends - begins >= STATE_BYTES).all()), "rans block is shorter than its states")
    check(int(ends[-1]) == len(chunk), "rans chunk has bytes after its last block")
    n_symbols = np.full(n_blocks, block_size)
    n_symbols[-1] = raw_bytes - (n_blocks - 1) * block_size
    # no step takes more than one word
    longest = STATE_BYTES + 2 * (-(-n_symbols // GROUP) * GROUP) + 2
    check(bool((ends - begins <= longest).all()), "rans block is longer than its symbols can be")
    return RansHeader(symbol=None, frequencies=frequencies, begins=begins, ends=ends, n_symbols=n_symbols)


def _read_frequencies(chunk: memoryview) -> tuple[NDArray[np.int64], int]:
    """Return the frequencies, int64[256], and the offset of the directory behind them."""
    check(len(chunk) >= 8, "rans chunk is shorter than its header")
    first, last = chunk[4], chunk[5]
    check(first < last, "rans first_symbol is not below last_symbol")
    table_bytes = int.from_bytes(chunk[6:8], "little")
    directory = 8 + -(-table_bytes // 4) * 4
    check(directory <= len(chunk), "rans frequency table passes the end of the chunk")
    check(not any(chunk[8 + table_bytes : directory]), "padding of the rans frequency table is not zero")
    bits = int.from_bytes(chunk[8 : 8 + table_bytes], "little")
    left = 8 * table_bytes
    frequencies = np.zeros(256, np.int64)
    for symbol in range(first, last + 1):
        length = bits & 15
        n_bits = 4 + max(length - 1, 0)
        check(length <= wire.RANS_FREQUENCY_BITS, f"frequency of symbol {symbol} has {length} bits")
        check(n_bits <= left, "frequency table ends early")
        low = (bits >> 4) & ((1 << (n_bits - 4)) - 1)
        frequencies[symbol] = 0 if length == 0 else (1 << (length - 1)) + low
        bits >>= n_bits
        left -= n_bits
    ends_used = frequencies[first] > 0 and frequencies[last] > 0
    check(bool(ends_used), "first or last symbol of the frequency table has frequency 0")
    check(int(frequencies.sum()) == TOTAL, "frequencies do not sum to 4096")
    check(left < 8, "frequency table is longer than its symbols")
    check(bits == 0, "unused bits of the frequency table are not zero")
    return frequencies, directory


def check(condition: bool, reason: str) -> None:
    """Raise CorruptError(reason) unless the condition holds."""
    if not condition:
        raise CorruptError(reason)
