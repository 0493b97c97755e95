"""Codes times scales in float32: the formulas of FORMAT.md 5.3 and 5.5, one rounded operation after the other.

A product and a sum must not become one fused operation: the launcher compiles without fusion. What a matrix does not
have is None, and the code for it is not there. Rows, columns and groups may have any shapes that broadcast.
"""

import triton
import triton.language as tl

from spqfmt.kernels.triton import codes

NO_OFFSET = tl.constexpr(0)
ZERO_POINT = tl.constexpr(1)
MINIMUM = tl.constexpr(2)


@triton.jit
def group_value(
    values, steps, zeros, row, group, n_groups, n_tiles, SUPER_ROWS: tl.constexpr, SUPER_GROUPS: tl.constexpr
):
    """The value of a group, float32; with steps, step * (value - zero) of the tile that it lies in."""
    value = tl.load(values + (row * n_groups + group)).to(tl.float32)
    if steps is not None:
        tile = (row // SUPER_ROWS) * n_tiles + group // SUPER_GROUPS
        if zeros is not None:
            value -= tl.load(zeros + tile).to(tl.float32)
        value = tl.load(steps + tile).to(tl.float32) * value
    return value


@triton.jit
def group_parameters(
    row, group, groups, SUPER_ROWS: tl.constexpr, SUPER_GROUPS: tl.constexpr, OFFSET: tl.constexpr
):
    """Scale and zero point or minimum (0 where there is none) of groups; `groups` as `weights_of` takes them."""
    scale, scale_steps, scale_zeros, offset, offset_steps, offset_zeros, n_groups, n_tiles = groups
    s = group_value(
        scale, scale_steps, scale_zeros,
        row=row, group=group, n_groups=n_groups, n_tiles=n_tiles, SUPER_ROWS=SUPER_ROWS, SUPER_GROUPS=SUPER_GROUPS,
    )  # fmt: skip
    o = tl.zeros_like(s)
    if OFFSET != NO_OFFSET:
        o = group_value(
            offset, offset_steps, offset_zeros,
            row=row, group=group, n_groups=n_groups, n_tiles=n_tiles, SUPER_ROWS=SUPER_ROWS, SUPER_GROUPS=SUPER_GROUPS,
        )  # fmt: skip
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
    group,
    lines,
    groups,
    SUPER_ROWS: tl.constexpr,
    SUPER_GROUPS: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """Weights of codes (int32), float32. `lines` are the scales of rows and of columns.

    `groups` are scale, offset (each values, steps and zeros), and how many groups and tiles a row has.
    """
    row_scale, column_scale = lines
    if row_scale is not None:
        weight = code.to(tl.float32) * tl.load(row_scale + row)
        if column_scale is not None:
            weight = weight * tl.load(column_scale + column)
    else:
        s, o = group_parameters(row, group, groups, SUPER_ROWS, SUPER_GROUPS=SUPER_GROUPS, OFFSET=OFFSET)
        weight = group_weight(code.to(tl.float32), s, o, OFFSET)
    return weight


@triton.jit
def tile_by_rows(
    packed,
    row,
    begin,
    first_column,
    n_columns,
    lines,
    groups,
    GROUP_SIZE: tl.constexpr,
    SUPER_ROWS: tl.constexpr,
    SUPER_GROUPS: tl.constexpr,
    OFFSET: tl.constexpr,
    BITS: tl.constexpr,
    SIGNED: tl.constexpr,
    COLUMNS: tl.constexpr,
    UNIT: tl.constexpr,
    PER_BYTE: tl.constexpr,
):
    """Weights of `row` [rows, 1, 1, 1] from `first_column` on, and their columns: tiles as codes.py describes them.

    `begin`: number of each row's first code. Columns pass n_columns where the row ends; the weights there mean nothing.
    """
    column, unit, byte = codes.elements(first_column, COLUMNS, UNIT, PER_BYTE)
    code = codes.tile(
        packed, begin, column, byte=byte, width=n_columns, BITS=BITS, SIGNED=SIGNED, PER_BYTE=PER_BYTE
    )
    weight = weights_of(
        code,
        row,
        tl.minimum(column, n_columns - 1),
        group=tl.minimum(unit, n_columns - 1) // GROUP_SIZE,
        lines=lines,
        groups=groups,
        SUPER_ROWS=SUPER_ROWS,
        SUPER_GROUPS=SUPER_GROUPS,
        OFFSET=OFFSET,
    )
    return weight, column
