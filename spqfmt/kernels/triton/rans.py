"""rans blocks -> bytes (FORMAT.md 4.3). One warp decodes a block, each of its lanes one lane of the coder.

The records are those of spqfmt.kernels.device.chunks.DecodePlan. Offsets are uint32: that saves instructions.
"""

import triton
import triton.language as tl

from spqfmt import wire
from spqfmt.kernels.device import chunks

LANES = tl.constexpr(wire.RANS_LANES)
GROUP = tl.constexpr(wire.RANS_LANES * wire.RANS_SYMBOLS_PER_LANE)
FREQUENCY_BITS = tl.constexpr(wire.RANS_FREQUENCY_BITS)
SLOT_MASK = tl.constexpr(chunks.TABLE_WORDS - 1)
STATE_LOWER_BOUND = tl.constexpr(wire.RANS_STATE_LOWER_BOUND)
TABLE_WORDS = tl.constexpr(chunks.TABLE_WORDS)
CUMULATIVE_WORDS = tl.constexpr(chunks.CUMULATIVE_WORDS)
BLOCK_WORDS = tl.constexpr(chunks.BLOCK_WORDS)
BLOCKS_AT_ONCE = tl.constexpr(chunks.BLOCKS_AT_ONCE)
AHEAD_WORDS = tl.constexpr(28)
"""Where words are looked at ahead of their use: what 128 symbols take at most from there on is still readable."""


@triton.jit
def build_tables(records, tables):
    """Program t: the table of slots of chunk t, frequency << 20 | symbol << 12 | slot - cumulative[symbol]."""
    slot = tl.arange(0, TABLE_WORDS)
    cumulative = records + tl.program_id(0) * CUMULATIVE_WORDS
    symbol = tl.zeros([TABLE_WORDS], tl.int32)
    for bit in tl.static_range(7, -1, -1):
        above = symbol + (1 << bit)
        symbol = tl.where(tl.load(cumulative + above) <= slot, above, symbol)
    begin = tl.load(cumulative + symbol)
    end = tl.load(cumulative + symbol + 1, mask=symbol < 255, other=TABLE_WORDS)
    entry = ((end - begin) << 20) | (symbol << 12) | (slot - begin)
    tl.store(tables + tl.program_id(0) * TABLE_WORDS + slot, entry)


@triton.jit
def popcount(v):
    """Bits set in each uint32. Compilers know this form and make one instruction of it."""
    v = v - ((v >> 1) & 0x55555555)
    v = (v & 0x33333333) + ((v >> 2) & 0x33333333)
    v = (v + (v >> 4)) & 0x0F0F0F0F
    return (v * 0x01010101) >> 24


@triton.jit
def start(stored, records, tables, first_block):
    """The lanes' states, the next word of each block, the end of its words, its table; [blocks, 32] or [blocks, 1]."""
    record = records + (first_block + tl.arange(0, BLOCKS_AT_ONCE)[:, None]) * BLOCK_WORDS
    lane = tl.arange(0, LANES)[None, :]
    begin = tl.load(record)
    x = tl.load(stored + (begin + lane)).to(tl.uint32, bitcast=True)
    at = (2 * begin + 2 * LANES).to(tl.uint32)
    return x, at, tl.load(record + 1).to(tl.uint32), tables + tl.load(record + 4) * TABLE_WORDS


@triton.jit
def step(x, at, table, words, lane_bit):
    """One symbol of each lane: its entry, the new states, the next word of each block.

    The words of a step go to the lanes that take one in ascending order. Who takes one is a bit of `taken`, so that a
    lane's place among them is the number of bits below its own.
    """
    entry = tl.load(table + (x & SLOT_MASK)).to(tl.uint32, bitcast=True)
    x = (entry >> 20) * (x >> FREQUENCY_BITS) + (entry & 0xFFF)
    takes = x < STATE_LOWER_BOUND
    taken = tl.xor_sum(tl.where(takes, lane_bit, 0), axis=1, keep_dims=True)
    rank = popcount(taken & (lane_bit - 1))
    # all lanes load, two instructions less than a mask: the words are side by side, and there is room behind the last
    word = tl.load(words + (at + rank)).to(tl.uint16, bitcast=True).to(tl.uint32)
    return entry, tl.where(takes, (x << 16) | word, x), at + popcount(taken)


@triton.jit
def report(x, first_x, at, end, words, error, seen):
    """Add what is wrong with finished blocks to `error`: the bits of spqfmt.kernels.torch_rans.FAULTS.

    `seen` is only there so that what was read ahead is not left out by compilers: where it is 0, nothing is added.
    """
    faults = tl.where(first_x < STATE_LOWER_BOUND, 1, 0)
    faults |= tl.where(at > end, 2, 0)
    faults |= tl.where(at + 1 < end, 4, 0)
    padding = tl.load(words + (end - 1)) != 0
    faults |= tl.where((at + 1 == end) & padding, 8, 0)
    faults |= tl.where(x != STATE_LOWER_BOUND, 16, 0)
    tl.atomic_or(error + tl.zeros_like(faults), faults, mask=(faults != 0) | (seen == 0), sem="relaxed")


@triton.jit
def turned(pair):
    """Two elements of 16 bits, each rotated right by one bit."""
    return ((pair >> 1) & 0x7FFF7FFF) | ((pair & 0x00010001) << 15)


@triton.jit
def decode_blocks(
    stored, words, records, tables, out, error, first_block, WORDS: tl.constexpr, PAIRS: tl.constexpr
):
    """BLOCKS_AT_ONCE blocks a program, from record `first_block` on.

    `stored` int32 and `words` int16 are the same bytes.
    With PAIRS symbols are high bytes of elements, whose low bytes are stored: an element is both, rotated right.
    `out` is int32 (int64 with PAIRS) with WORDS, for blocks that begin and end at multiples of 4 elements, else uint8
    (int16).
    """
    first_block += tl.program_id(0) * BLOCKS_AT_ONCE
    x, at, end, table = start(stored, records, tables, first_block)
    first_x = x
    record = records + (first_block + tl.arange(0, BLOCKS_AT_ONCE)[:, None]) * BLOCK_WORDS
    lane = tl.arange(0, LANES)[None, :]
    lane_bit = tl.full([1, LANES], 1, tl.uint32) << lane.to(tl.uint32)
    place = tl.load(record + 2) + 4 * lane
    stop = tl.load(record + 2) + tl.load(record + 3)
    if PAIRS:
        low_at = tl.load(record + 6) + lane
    # Words are in the first cache when they are wanted: those that come 128 symbols later are asked for, every fourth.
    ahead = AHEAD_WORDS + 4 * lane
    seen = tl.zeros_like(place).to(tl.int16)
    coming = seen
    for _ in range(tl.load(records + first_block * BLOCK_WORDS + 5)):
        # a damaged block stays past its end for good, and near it: what it reads is there
        at = tl.minimum(at, end + 1)
        seen |= coming
        coming = tl.load(words + (at + ahead))
        if PAIRS:
            low = tl.load(stored + low_at, mask=place < stop, other=0).to(tl.uint32, bitcast=True)
            first = (low & 0xFF) | ((low & 0xFF00) << 8)
            second = ((low >> 16) & 0xFF) | ((low >> 8) & 0xFF0000)
            low_at += LANES
        else:
            first = tl.zeros_like(x)
            second = first
        for k in tl.static_range(4):
            entry, x, at = step(x, at, table, words=words, lane_bit=lane_bit)
            symbol = (entry >> 12) & 255
            if not PAIRS:
                first |= symbol << (8 * k)
            elif k < 2:
                first |= symbol << (8 + 16 * k)
            else:
                second |= symbol << (16 * k - 24)
        if PAIRS:
            first, second = turned(first), turned(second)
        if WORDS and PAIRS:
            both = first.to(tl.uint64) | (second.to(tl.uint64) << 32)
            tl.store(out + (place >> 2), both.to(tl.int64, bitcast=True), mask=place < stop)
        elif WORDS:
            tl.store(out + (place >> 2), first.to(tl.int32, bitcast=True), mask=place < stop)
        elif PAIRS:
            for k in tl.static_range(4):
                element = (first if k < 2 else second) >> (16 * (k % 2))
                tl.store(
                    out + (place + k), element.to(tl.uint16).to(tl.int16, bitcast=True), mask=place + k < stop
                )
        else:
            for k in tl.static_range(4):
                tl.store(out + (place + k), (first >> (8 * k)).to(tl.uint8), mask=place + k < stop)
        place += GROUP
    report(x, first_x, at, end=end, words=words, error=error, seen=seen)
