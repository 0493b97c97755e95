"""Byte planes -> elements (FORMAT.md 3.2)."""

import triton
import triton.language as tl

AT_ONCE = tl.constexpr(1024)


@triton.jit
def merge_planes(planes, out, n, SIZE: tl.constexpr, ROTATED: tl.constexpr):
    """`planes` uint8 [SIZE, n], `out` signed integers of SIZE bytes; program p makes AT_ONCE elements."""
    number = tl.program_id(0).to(tl.int64) * AT_ONCE + tl.arange(0, AT_ONCE)
    mask = number < n
    merged = tl.zeros([AT_ONCE], tl.uint64)
    for plane in tl.static_range(SIZE):
        byte = tl.load(planes + (plane * n + number), mask=mask, other=0)
        merged |= byte.to(tl.uint64) << (8 * plane)
    if ROTATED:
        merged = (merged >> 1) | ((merged & 1) << (8 * SIZE - 1))
    if SIZE == 2:
        tl.store(out + number, merged.to(tl.uint16).to(tl.int16, bitcast=True), mask=mask)
    elif SIZE == 4:
        tl.store(out + number, merged.to(tl.uint32).to(tl.int32, bitcast=True), mask=mask)
    else:
        tl.store(out + number, merged.to(tl.int64, bitcast=True), mask=mask)
