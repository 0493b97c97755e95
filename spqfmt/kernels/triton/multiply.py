"""A few tokens times packed weights: y = x W^T. The weights of a tile exist in registers only."""

import triton
import triton.language as tl

from spqfmt.kernels.triton import codes, floats, scales


@triton.jit
def multiply(
    x,
    packed,
    y,
    bias,
    first,
    first_row,
    stop_row,
    n_tokens,
    n_columns,
    y_stride,
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
    OUT: tl.constexpr,
    PRECISION: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    UNIT: tl.constexpr,
    PER_BYTE: tl.constexpr,
):
    """Program r: ROWS rows, all columns. TOKENS is 1, or 16 of which n_tokens are there: then it is a matrix product.

    `x` is [n_tokens, n_columns], `y` [n_tokens, y_stride] as floats.store takes OUT; TO is what weights are rounded to.
    `bias`, a number for each row of the matrix, may be None.
    """
    lines = (row_scale, column_scale)
    scale_of_groups = (scale, scale_table, scale_steps, scale_zeros, scale_minimums)
    offset_of_groups = (offset, offset_table, offset_steps, offset_zeros, offset_minimums)
    groups = (scale_of_groups, offset_of_groups, levels, n_groups, n_tiles)
    number = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = tl.minimum(first_row + number, stop_row - 1)[:, None, None, None]
    begin = first + (row - first_row).to(tl.int64) * n_columns
    token = tl.arange(0, TOKENS)[:, None]
    if TOKENS == 1:
        sums = tl.zeros([ROWS, COLUMNS // UNIT, UNIT // PER_BYTE, PER_BYTE], tl.float32)
    else:
        sums = tl.zeros([TOKENS, ROWS], tl.float32)
    for first_column in range(0, n_columns, COLUMNS):
        weight, column = scales.tile_by_rows(
            packed,
            row,
            begin,
            first_column=first_column,
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
        # inputs behind the last column are 0
        if TOKENS == 1:
            sums += weight * tl.load(x + column, mask=column < n_columns, other=0).to(tl.float32)
        else:
            weight = tl.trans(tl.reshape(floats.rounded_to(weight, TO), [ROWS, COLUMNS]))
            column = first_column + tl.arange(0, COLUMNS)[None, :]
            inside = (token < n_tokens) & (column < n_columns)
            inputs = tl.load(x + (token * n_columns + column), mask=inside, other=0).to(tl.float32)
            if TO == floats.F32:
                sums = tl.dot(inputs, weight, sums, input_precision="ieee")
            else:
                # tf32 holds every bfloat16 and float16: what is multiplied is exact; float32 where there is no tf32
                sums = tl.dot(inputs, weight, sums, input_precision=PRECISION)
    if TOKENS == 1:
        sums = tl.sum(tl.reshape(sums, [ROWS, COLUMNS]), axis=1)[None, :]
    to = first_row + number[None, :]
    if bias is not None:
        sums += tl.load(bias + tl.minimum(to, stop_row - 1)).to(tl.float32)
    floats.store(y + (token * y_stride + to), sums, (token < n_tokens) & (to < stop_row), OUT)


@triton.jit
def correct(
    x,
    packed,
    y,
    out,
    bias,
    row_begin,
    columns,
    values,
    first,
    first_row,
    n_tokens,
    n_columns,
    y_stride,
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
    OUT: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """Program r: put the outliers of row first_row + r in place of what `multiply` computed with their codes.

    `y` has its float32 sums. To `out`, unless it is None, goes what `multiply` would have stored with `bias` and OUT.
    """
    lines = (row_scale, column_scale)
    scale_of_groups = (scale, scale_table, scale_steps, scale_zeros, scale_minimums)
    offset_of_groups = (offset, offset_table, offset_steps, offset_zeros, offset_minimums)
    groups = (scale_of_groups, offset_of_groups, levels, n_groups, n_tiles)
    row = first_row + tl.program_id(0)
    end = tl.load(row_begin + row + 1)
    for begin in range(tl.load(row_begin + row), end, AT_ONCE):
        number = begin + tl.arange(0, AT_ONCE)
        mask = number < end
        number = tl.minimum(number, end - 1)
        column = tl.load(columns + number)
        code = codes.at(packed, first + tl.program_id(0).to(tl.int64) * n_columns + column, BITS, SIGNED)
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
        change = floats.rounded_to(tl.load(values + number), TO) - floats.rounded_to(weight, TO)
        for token in range(n_tokens):
            inputs = tl.load(x + (token * n_columns + column)).to(tl.float32)
            place = y + (token * y_stride + row)
            tl.store(place, tl.load(place) + tl.sum(tl.where(mask, change * inputs, 0), axis=0))
    if out is not None:
        # one thread stores the sums, and what it loads here is what is stored
        for token in range(n_tokens):
            total = tl.load(y + (token * y_stride + row))
            if bias is not None:
                total += tl.load(bias + row).to(tl.float32)
            floats.store(out + (token * y_stride + row), total, None, OUT)
