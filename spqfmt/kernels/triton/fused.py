"""rans blocks -> bfloat16 weights in one pass: the codes exist in registers only."""

import triton
import triton.language as tl

from spqfmt.kernels.triton import codes, floats, rans, scales


@triton.jit
def weight_bits(
    symbol,
    k,
    row,
    column,
    r,
    s,
    o,
    column_scale,
    BITS: tl.constexpr,
    SIGNED: tl.constexpr,
    OFFSET: tl.constexpr,
    UNIFORM: tl.constexpr,
):
    """The bits of weight `k` of a lane's codes, which begin at (row, column), from a symbol shifted to that code."""
    code = codes.with_sign(symbol.to(tl.int32), BITS, SIGNED)
    if UNIFORM:
        weight = code.to(tl.float32) * r
        if column_scale is not None:
            weight = weight * tl.load(column_scale + (column + k))
    else:
        weight = scales.group_weight(code.to(tl.float32), s, o, OFFSET)
    return floats.bf16_bits(weight)


@triton.jit
def decode_dequantize(
    stored,
    words,
    records,
    tables,
    out,
    error,
    first_row,
    row_scale,
    column_scale,
    scale,
    scale_steps,
    scale_zeros,
    offset,
    offset_steps,
    offset_zeros,
    n_groups,
    n_tiles,
    N_COLUMNS: tl.constexpr,
    BITS: tl.constexpr,
    SIGNED: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    SUPER_ROWS: tl.constexpr,
    SUPER_GROUPS: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """As rans.decode_blocks, whose byte 0 of `out` is the code at (first_row, 0); `out` int64 holds four weights each.

    A lane's four symbols are codes of one row and of one group.
    """
    UNIFORM: tl.constexpr = row_scale is not None
    PER_BYTE: tl.constexpr = 8 // BITS
    first_block = tl.program_id(0) * rans.BLOCKS_AT_ONCE
    x, at, end, table = rans.start(stored, records, tables, first_block)
    first_x = x
    record = records + (first_block + tl.arange(0, rans.BLOCKS_AT_ONCE)[:, None]) * rans.BLOCK_WORDS
    lane = tl.arange(0, rans.LANES)[None, :]
    lane_bit = tl.full([1, rans.LANES], 1, tl.uint32) << lane.to(tl.uint32)
    place = (tl.load(record + 2) + 4 * lane).to(tl.uint32)
    stop = (tl.load(record + 2) + tl.load(record + 3)).to(tl.uint32)
    for _ in range(tl.load(records + first_block * rans.BLOCK_WORDS + 5)):
        at = tl.minimum(at, end + 1)
        # behind the last code: what is computed there is not stored
        inside = tl.minimum(place, stop - 4)
        row = first_row + inside // (N_COLUMNS // PER_BYTE)
        column = (inside % (N_COLUMNS // PER_BYTE)) * PER_BYTE
        if UNIFORM:
            r = tl.load(row_scale + row)
            s, o = r, r
        else:
            s, o = scales.group_parameters(
                row,
                column // GROUP_SIZE,
                scale,
                scale_steps,
                scale_zeros,
                offset,
                offset_steps,
                offset_zeros,
                n_groups,
                n_tiles,
                SUPER_ROWS,
                SUPER_GROUPS,
                OFFSET,
            )
            r = s
        low = tl.zeros_like(x)
        high = tl.zeros_like(x)
        more_low = tl.zeros_like(x)
        more_high = tl.zeros_like(x)
        for k in tl.static_range(4):
            entry, x, at = rans.step(x, at, table, words, lane_bit)
            symbol = entry >> 12
            bits = weight_bits(
                symbol, PER_BYTE * k, row, column, r, s, o, column_scale, BITS, SIGNED, OFFSET, UNIFORM
            )
            if PER_BYTE == 1:
                if k < 2:
                    low |= bits << (16 * k)
                else:
                    high |= bits << (16 * (k - 2))
            else:
                next_bits = weight_bits(
                    symbol >> BITS,
                    2 * k + 1,
                    row,
                    column,
                    r,
                    s,
                    o,
                    column_scale,
                    BITS,
                    SIGNED,
                    OFFSET,
                    UNIFORM,
                )
                both = bits | (next_bits << 16)
                if k == 0:
                    low = both
                elif k == 1:
                    high = both
                elif k == 2:
                    more_low = both
                else:
                    more_high = both
        four = low.to(tl.uint64) | (high.to(tl.uint64) << 32)
        to = out + (place >> 2) * PER_BYTE
        tl.store(to, four.to(tl.int64, bitcast=True), mask=place < stop)
        if PER_BYTE == 2:
            four = more_low.to(tl.uint64) | (more_high.to(tl.uint64) << 32)
            tl.store(to + 1, four.to(tl.int64, bitcast=True), mask=place < stop)
        place += rans.GROUP
    rans.report(x, first_x, at, end, words, error)
