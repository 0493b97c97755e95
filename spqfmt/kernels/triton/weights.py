"""Codes -> weights in memory, tile by tile."""

import triton
import triton.language as tl

from spqfmt.kernels.triton import codes, floats, scales


@triton.jit
def dequantize_rows(
    packed,
    out,
    permutation,
    ids,
    first,
    first_row,
    stop_row,
    n_columns,
    row_scale,
    column_scale,
    scale,
    scale_table,
    scale_steps,
    scale_zeros,
    scale_minimums,
    offset,
    offset_table,
    offset_steps,
    offset_zeros,
    offset_minimums,
    levels,
    n_groups,
    n_tiles,
    GROUP_SIZE: tl.constexpr,
    SUPER_ROWS: tl.constexpr,
    SUPER_GROUPS: tl.constexpr,
    OFFSET: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
    STACKED_ROWS: tl.constexpr,
    BITS: tl.constexpr,
    SIGNED: tl.constexpr,
    TO: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    UNIT: tl.constexpr,
    PER_BYTE: tl.constexpr,
):
    """Program (r, c): ROWS rows by COLUMNS columns; code number `first` of `packed` is that of (first_row, 0).

    Pointers to what is not there are None; see spqfmt.kernels.device.matrix. With `ids`, int64 and of one row a
    program, row r of `out` is row ids[r], NaN where that is none of first_row to stop_row.
    """
    lines = (row_scale, column_scale)
    scale_of_groups = (scale, scale_table, scale_steps, scale_zeros, scale_minimums)
    offset_of_groups = (offset, offset_table, offset_steps, offset_zeros, offset_minimums)
    groups = (scale_of_groups, offset_of_groups, levels, n_groups, n_tiles)
    number = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None, None, None]
    row = first_row + number
    if ids is not None:
        row = tl.load(ids + number)
    asked = row
    row = tl.maximum(tl.minimum(row, stop_row - 1), first_row)
    begin = (row - first_row).to(tl.int64) * n_columns
    weight, column = scales.tile_by_rows(
        packed,
        row,
        first + begin,
        first_column=tl.program_id(1) * COLUMNS,
        n_columns=n_columns,
        lines=lines,
        groups=groups,
        GROUP_SIZE=GROUP_SIZE,
        SUPER_ROWS=SUPER_ROWS,
        SUPER_GROUPS=SUPER_GROUPS,
        OFFSET=OFFSET,
        GROUP_ROWS=GROUP_ROWS,
        STACKED_ROWS=STACKED_ROWS,
        BITS=BITS,
        SIGNED=SIGNED,
        COLUMNS=COLUMNS,
        UNIT=UNIT,
        PER_BYTE=PER_BYTE,
    )
    to = column
    if permutation is not None:
        to = tl.load(permutation + tl.minimum(column, n_columns - 1))
    mask = column < n_columns
    if ids is not None:
        weight = tl.where(asked == row, weight, float("nan"))
    else:
        mask &= asked == row
    floats.store(out + (number.to(tl.int64) * n_columns + to), weight, mask, TO)


@triton.jit
def dequantize_columns(
    packed,
    out,
    order,
    first,
    first_channel,
    stop_channel,
    n_rows,
    row_scale,
    column_scale,
    scale,
    scale_table,
    scale_steps,
    scale_zeros,
    scale_minimums,
    offset,
    offset_table,
    offset_steps,
    offset_zeros,
    offset_minimums,
    levels,
    n_groups,
    n_tiles,
    GROUP_SIZE: tl.constexpr,
    SUPER_ROWS: tl.constexpr,
    SUPER_GROUPS: tl.constexpr,
    OFFSET: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
    STACKED_ROWS: tl.constexpr,
    BITS: tl.constexpr,
    SIGNED: tl.constexpr,
    TO: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Program (c, r): CHANNELS stored columns by ROWS rows, code number `first` being that of (0, first_channel).

    `out` is [n_rows, stop_channel - first_channel]; column order[c] is stored as channel c.
    """
    lines = (row_scale, column_scale)
    scale_of_groups = (scale, scale_table, scale_steps, scale_zeros, scale_minimums)
    offset_of_groups = (offset, offset_table, offset_steps, offset_zeros, offset_minimums)
    groups = (scale_of_groups, offset_of_groups, levels, n_groups, n_tiles)
    channel = first_channel + tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)[:, None]
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[None, :]
    mask = (channel < stop_channel) & (row < n_rows)
    to = row.to(tl.int64) * (stop_channel - first_channel) + (channel - first_channel)
    channel = tl.minimum(channel, stop_channel - 1)
    row = tl.minimum(row, n_rows - 1)
    code = codes.at(packed, first + (channel - first_channel).to(tl.int64) * n_rows + row, BITS, SIGNED)
    column = channel
    if order is not None:
        column = tl.load(order + channel)
    weight = scales.weights_of(
        code,
        row,
        column,
        group=column // GROUP_SIZE,
        lines=lines,
        groups=groups,
        SUPER_ROWS=SUPER_ROWS,
        SUPER_GROUPS=SUPER_GROUPS,
        OFFSET=OFFSET,
        GROUP_ROWS=GROUP_ROWS,
        STACKED_ROWS=STACKED_ROWS,
    )
    floats.store(out + to, weight, mask, TO)
