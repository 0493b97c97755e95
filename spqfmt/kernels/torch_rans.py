"""The rans decoder as torch operations: an oracle that shares no code with the native decoders.

All lanes of all blocks take a step at once. Slow (tens of MB/s), plain, and it parses the chunk by itself, in the order
of FORMAT.md 4.3.
"""

import numpy as np
import torch

from spqfmt import wire
from spqfmt.errors import CorruptError, UnsupportedError
from spqfmt.kernels.native import Buffer

_GROUP = wire.RANS_LANES * wire.RANS_SYMBOLS_PER_LANE
_TOTAL = 1 << wire.RANS_FREQUENCY_BITS


def rans_decode(src: Buffer, dst: Buffer) -> None:
    """Decode the rans chunk `src` into `dst` of exactly its raw size; errors as native.rans_decode."""
    chunk = np.frombuffer(src, np.uint8).data
    out = np.frombuffer(dst, np.uint8)
    if not out.flags.writeable:
        raise ValueError("dst is read-only")
    out[:] = decode(chunk, out.size).numpy()


def decode(chunk: memoryview, raw_bytes: int) -> torch.Tensor:
    """Decode a chunk of `raw_bytes` symbols into a new uint8[raw_bytes] tensor."""
    _check(raw_bytes > 0, "rans chunk of no symbols")
    _check(len(chunk) >= 4, "rans chunk is shorter than its header")
    coder, kind, block_log2, symbol = chunk[:4]
    if coder != wire.RANS_CODER_QUAD:
        raise UnsupportedError(f"unknown rans coder {coder}", f"rans coder {coder}")
    if kind == wire.RANS_KIND_CONSTANT:
        _check(block_log2 == 0 and len(chunk) == 4, "constant rans chunk with more than its symbol")
        return torch.full((raw_bytes,), symbol, dtype=torch.uint8)
    _check(kind == wire.RANS_KIND_BLOCKS, f"unknown kind {kind} of rans chunk")
    _check(wire.RANS_MIN_BLOCK_LOG2 <= block_log2 <= wire.RANS_MAX_BLOCK_LOG2, "rans block_log2 is not 7..16")
    _check(symbol == 0, "reserved byte of the rans header is not zero")
    frequencies, directory = _read_frequencies(chunk)

    block_size = 1 << block_log2
    n_blocks = -(-raw_bytes // block_size)
    first_block = directory + 4 * n_blocks
    _check(first_block <= len(chunk), "rans block directory passes the end of the chunk")
    ends = torch.tensor(np.frombuffer(chunk[directory:first_block], "<u4").astype(np.int64))
    begins = torch.cat((torch.tensor([first_block]), ends[:-1]))
    _check(bool((ends % 4 == 0).all()), "end of a rans block is not a multiple of 4")
    _check(bool((ends - begins >= 4 * wire.RANS_LANES).all()), "rans block is shorter than its states")
    _check(int(ends[-1]) == len(chunk), "rans chunk has bytes after its last block")
    n_symbols = torch.full((n_blocks,), block_size)
    n_symbols[-1] = raw_bytes - (n_blocks - 1) * block_size
    words = torch.tensor(np.frombuffer(chunk, "<u2").astype(np.int64))
    symbols = _decode_blocks(words, begins // 2, ends // 2, n_symbols, frequencies)
    return symbols.reshape(-1)[:raw_bytes]


def _decode_blocks(
    words: torch.Tensor,
    begins: torch.Tensor,
    ends: torch.Tensor,
    n_symbols: torch.Tensor,
    frequencies: torch.Tensor,
) -> torch.Tensor:
    """Decode blocks side by side; `begins` and `ends` count words. Returns uint8[n_blocks, longest block]."""
    cumulative = torch.cumsum(frequencies, 0) - frequencies
    symbol_of_slot = torch.repeat_interleave(torch.arange(256), frequencies)
    state_words = words[begins[:, None] + torch.arange(2 * wire.RANS_LANES)]
    x = state_words[:, 0::2] | state_words[:, 1::2] << 16
    _check(bool((x >= wire.RANS_STATE_LOWER_BOUND).all()), "a first state of a rans block is below 2^16")
    at = begins + 2 * wire.RANS_LANES
    n_steps = -(-n_symbols // _GROUP) * wire.RANS_SYMBOLS_PER_LANE
    most_steps = int(n_steps.max())
    out = torch.empty((len(begins), most_steps, wire.RANS_LANES), dtype=torch.uint8)
    for step in range(most_steps):
        running = (step < n_steps)[:, None]
        slot = x % _TOTAL
        symbol = symbol_of_slot[slot]
        out[:, step] = symbol.to(torch.uint8)
        y = frequencies[symbol] * (x // _TOTAL) + slot - cumulative[symbol]
        takes = (y < wire.RANS_STATE_LOWER_BOUND) & running
        rank = torch.cumsum(takes, 1) - 1
        _check(bool((at + takes.sum(1) <= ends).all()), "rans block ends before its symbols")
        word = words[(at[:, None] + rank).clamp(0, len(words) - 1)]
        x = torch.where(running, torch.where(takes, y << 16 | word, y), x)
        at = at + takes.sum(1)
    _check(bool((x == wire.RANS_STATE_LOWER_BOUND).all()), "a last state of a rans block is not 2^16")
    left = ends - at
    _check(bool((left <= 1).all()), "rans block has words left after its symbols")
    _check(bool((words[ends - 1][left == 1] == 0).all()), "padding word of a rans block is not zero")
    # step 4g + k of lane l is symbol 128g + 4l + k
    quads = out.reshape(len(begins), -1, wire.RANS_SYMBOLS_PER_LANE, wire.RANS_LANES)
    return quads.transpose(2, 3).reshape(len(begins), -1)


def _read_frequencies(chunk: memoryview) -> tuple[torch.Tensor, int]:
    """Return the frequencies, int64[256], and the offset of the directory behind them."""
    _check(len(chunk) >= 8, "rans chunk is shorter than its header")
    first, last = chunk[4], chunk[5]
    _check(first < last, "rans first_symbol is not below last_symbol")
    table_bytes = int.from_bytes(chunk[6:8], "little")
    directory = 8 + -(-table_bytes // 4) * 4
    _check(directory <= len(chunk), "rans frequency table passes the end of the chunk")
    _check(not any(chunk[8 + table_bytes : directory]), "padding of the rans frequency table is not zero")
    bits = int.from_bytes(chunk[8 : 8 + table_bytes], "little")
    left = 8 * table_bytes
    frequencies = torch.zeros(256, dtype=torch.int64)
    for symbol in range(first, last + 1):
        length = bits & 15
        n_bits = 4 + max(length - 1, 0)
        _check(length <= wire.RANS_FREQUENCY_BITS, f"frequency of symbol {symbol} has {length} bits")
        _check(n_bits <= left, "frequency table ends early")
        low = (bits >> 4) & ((1 << (n_bits - 4)) - 1)
        frequencies[symbol] = 0 if length == 0 else (1 << (length - 1)) + low
        bits >>= n_bits
        left -= n_bits
    ends_used = int(frequencies[first]) > 0 and int(frequencies[last]) > 0
    _check(ends_used, "first or last symbol of the frequency table has frequency 0")
    _check(int(frequencies.sum()) == _TOTAL, "frequencies do not sum to 4096")
    _check(left < 8, "frequency table is longer than its symbols")
    _check(bits == 0, "unused bits of the frequency table are not zero")
    return frequencies, directory


def _check(condition: bool, reason: str) -> None:
    if not condition:
        raise CorruptError(reason)
