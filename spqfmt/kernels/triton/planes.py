"""Byte planes -> elements (FORMAT.md 3.2), every chunk of a spqfmt.kernels.device.merging.MergePlan at once."""

import triton
import triton.language as tl

from spqfmt.kernels.device import merging

AT_ONCE = tl.constexpr(1024)
TILE = tl.constexpr(merging.TILE)
STORED = tl.constexpr(int(merging.Source.STORED))
SYMBOL = tl.constexpr(int(merging.Source.SYMBOL))


@triton.jit
def merge_planes(stored, scratch, records, out, SIZE: tl.constexpr, ROTATED: tl.constexpr):
    """`stored` and `scratch` uint8, `out` integers of SIZE bytes; program p makes the elements of record p."""
    record = records + tl.program_id(0) * (2 + 2 * SIZE)
    n, begin = tl.load(record), tl.load(record + 1)
    for first in range(0, TILE, AT_ONCE):
        number = first + tl.arange(0, AT_ONCE)
        mask = number < n
        merged = tl.zeros([AT_ONCE], tl.uint64)
        for plane in tl.static_range(SIZE):
            source, at = tl.load(record + 2 + 2 * plane), tl.load(record + 3 + 2 * plane)
            is_sent, is_symbol = source == STORED, source == SYMBOL
            sent = tl.load(stored + (at + number), mask=mask & is_sent, other=0)
            decoded = tl.load(scratch + (at + number), mask=mask & (source == 0), other=0)
            byte = (sent | decoded).to(tl.uint64) | tl.where(is_symbol, at, 0).to(tl.uint64)
            merged |= byte << (8 * plane)
        if ROTATED:
            merged = (merged >> 1) | ((merged & 1) << (8 * SIZE - 1))
        if SIZE == 1:
            tl.store(out + (begin + number), merged.to(tl.uint8), mask=mask)
        elif SIZE == 2:
            tl.store(out + (begin + number), merged.to(tl.uint16).to(tl.int16, bitcast=True), mask=mask)
        elif SIZE == 4:
            tl.store(out + (begin + number), merged.to(tl.uint32).to(tl.int32, bitcast=True), mask=mask)
        else:
            tl.store(out + (begin + number), merged.to(tl.int64, bitcast=True), mask=mask)
