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
def group_value(values, line, group, n_groups, n_tiles, SUPER_ROWS: tl.constexpr, SUPER_GROUPS: tl.constexpr):
    """The value of a group, float32; `values` are its numbers, table, steps, zeros and minimums.

    With steps it is step * (value - zero) - minimum of the tile that it lies in.
    """
    numbers, table, steps, zeros, minimums = values
    value = tl.load(numbers + (line * n_groups + group))
    if table is not None:
        value = tl.load(table + value.to(tl.int32))
    value = value.to(tl.float32)
    if steps is not None:
        tile = (line // SUPER_ROWS) * n_tiles + group // SUPER_GROUPS
        if zeros is not None:
            value -= tl.load(zeros + tile).to(tl.float32)
        value = tl.load(steps + tile).to(tl.float32) * value
        if minimums is not None:
            value -= tl.load(minimums + tile).to(tl.float32)
    return value


@triton.jit
def group_parameters(
    line, group, groups, SUPER_ROWS: tl.constexpr, SUPER_GROUPS: tl.constexpr, OFFSET: tl.constexpr
):
    """Scale and zero point or minimum (0 where there is none) of groups; `groups` as `weights_of` takes them."""
    scale, offset, _, n_groups, n_tiles = groups
    s = group_value(
        scale,
        line,
        group,
        n_groups=n_groups,
        n_tiles=n_tiles,
        SUPER_ROWS=SUPER_ROWS,
        SUPER_GROUPS=SUPER_GROUPS,
    )
    o = tl.zeros_like(s)
    if OFFSET != NO_OFFSET:
        o = group_value(
            offset,
            line,
            group,
            n_groups=n_groups,
            n_tiles=n_tiles,
            SUPER_ROWS=SUPER_ROWS,
            SUPER_GROUPS=SUPER_GROUPS,
        )
    return s, o


@triton.jit
def line_of(row, GROUP_ROWS: tl.constexpr, STACKED_ROWS: tl.constexpr):
    """The line of groups that a row lies in: lines begin anew in each matrix that is stacked."""
    line = row
    if GROUP_ROWS > 1:
        LINES: tl.constexpr = (STACKED_ROWS + GROUP_ROWS - 1) // GROUP_ROWS
        line = row // STACKED_ROWS * LINES + row % STACKED_ROWS // GROUP_ROWS
    return line


@triton.jit
def number_of(code, levels):
    """What a code (int32) stands for, float32: itself, or the level of that number."""
    number = code
    if levels is not None:
        number = tl.load(levels + code)
    return number.to(tl.float32)


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
    GROUP_ROWS: tl.constexpr,
    STACKED_ROWS: tl.constexpr,
):
    """Weights of codes (int32), float32. `lines` are the scales of rows and of columns.

    `groups` are scale, offset (each as `group_value` takes it), levels, and how many groups and tiles a line has.
    """
    row_scale, column_scale = lines
    if row_scale is not None:
        weight = code.to(tl.float32) * tl.load(row_scale + row)
        if column_scale is not None:
            weight = weight * tl.load(column_scale + column)
    else:
        line = line_of(row, GROUP_ROWS, STACKED_ROWS)
        s, o = group_parameters(line, group, groups, SUPER_ROWS, SUPER_GROUPS=SUPER_GROUPS, OFFSET=OFFSET)
        weight = group_weight(number_of(code, groups[2]), s, o, OFFSET)
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
    GROUP_ROWS: tl.constexpr,
    STACKED_ROWS: tl.constexpr,
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
        GROUP_ROWS=GROUP_ROWS,
        STACKED_ROWS=STACKED_ROWS,
    )
    return weight, column
