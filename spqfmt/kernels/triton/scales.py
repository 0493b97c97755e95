"""Codes times scales in float32: the formulas of FORMAT.md 5.3 and 5.5, one rounded operation after the other.

A product and a sum must not become one fused operation: the launcher compiles without fusion.
What a matrix does not have is None, and the code for it is not there.
"""

import triton
import triton.language as tl

NO_OFFSET = tl.constexpr(0)
ZERO_POINT = tl.constexpr(1)
MINIMUM = tl.constexpr(2)


@triton.jit
def unpacked(codes, number, mask, BITS: tl.constexpr, SIGNED: tl.constexpr):
    """Codes of these numbers (any shape) of a packed run, int32."""
    PER_BYTE: tl.constexpr = 8 // BITS
    byte = tl.load(codes + number // PER_BYTE, mask=mask, other=0).to(tl.int32)
    code = (byte >> ((number % PER_BYTE).to(tl.int32) * BITS)) & ((1 << BITS) - 1)
    if SIGNED:
        code = (code ^ (1 << (BITS - 1))) - (1 << (BITS - 1))
    return code


@triton.jit
def group_value(
    values,
    steps,
    zeros,
    row,
    group,
    mask,
    n_groups,
    n_tiles,
    SUPER_ROWS: tl.constexpr,
    SUPER_GROUPS: tl.constexpr,
):
    """The value of a group, float32; with steps, step * (value - zero) of the tile that it lies in."""
    value = tl.load(values + (row * n_groups + group), mask=mask, other=0).to(tl.float32)
    if steps is not None:
        tile = (row // SUPER_ROWS) * n_tiles + group // SUPER_GROUPS
        if zeros is not None:
            value -= tl.load(zeros + tile, mask=mask, other=0).to(tl.float32)
        value = tl.load(steps + tile, mask=mask, other=0).to(tl.float32) * value
    return value


@triton.jit
def group_parameters(
    row,
    column,
    mask,
    scale,
    scale_steps,
    scale_zeros,
    offset,
    offset_steps,
    offset_zeros,
    n_groups,
    n_tiles,
    GROUP_SIZE: tl.constexpr,
    SUPER_ROWS: tl.constexpr,
    SUPER_GROUPS: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """Scale and zero point or minimum (0 where there is none) of the weights' groups."""
    group = column // GROUP_SIZE
    s = group_value(
        scale, scale_steps, scale_zeros, row, group, mask, n_groups, n_tiles, SUPER_ROWS, SUPER_GROUPS
    )
    o = tl.zeros_like(s)
    if OFFSET != NO_OFFSET:
        o = group_value(
            offset, offset_steps, offset_zeros, row, group, mask, n_groups, n_tiles, SUPER_ROWS, SUPER_GROUPS
        )
    return s, o


@triton.jit
def group_weight(code, s, o, OFFSET: tl.constexpr):
    """A weight of the grouped scheme from its code (float32), its group's scale and offset."""
    if OFFSET == ZERO_POINT:
        weight = s * (code - o)
    elif OFFSET == MINIMUM:
        weight = s * code - o
    else:
        weight = s * code
    return weight


@triton.jit
def weights_of(
    code,
    row,
    column,
    mask,
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
    GROUP_SIZE: tl.constexpr,
    SUPER_ROWS: tl.constexpr,
    SUPER_GROUPS: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """Weights of codes (int32) at rows and columns that broadcast to their shape; float32."""
    if row_scale is not None:
        weight = code.to(tl.float32) * tl.load(row_scale + row, mask=mask, other=0)
        if column_scale is not None:
            weight = weight * tl.load(column_scale + column, mask=mask, other=0)
    else:
        s, o = group_parameters(
            row,
            column,
            mask,
            scale,
            scale_steps,
            scale_zeros,
            offset,
            offset_steps,
            offset_zeros,
            n_groups,
            n_tiles,
            GROUP_SIZE,
            SUPER_ROWS,
            SUPER_GROUPS,
            OFFSET,
        )
        weight = group_weight(code.to(tl.float32), s, o, OFFSET)
    return weight
