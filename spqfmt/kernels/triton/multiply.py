"""A few tokens times packed weights: y = x W^T. The weights of a tile exist in registers only."""

import triton
import triton.language as tl

from spqfmt.kernels.triton import floats, scales


@triton.jit
def multiply(
    x,
    codes,
    y,
    first,
    first_row,
    stop_row,
    n_tokens,
    n_columns,
    y_stride,
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
    BITS: tl.constexpr,
    SIGNED: tl.constexpr,
    TO: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    SUPER_ROWS: tl.constexpr,
    SUPER_GROUPS: tl.constexpr,
    OFFSET: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Program r: ROWS rows, all columns. TOKENS is 1, or 16 of which n_tokens are there: then it is a matrix product.

    `x` is [n_tokens, n_columns], `y` float32 [n_tokens, y_stride]; TO is x's dtype, which weights are rounded to.
    """
    row = first_row + tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    token = tl.arange(0, TOKENS)[:, None]
    sums = tl.zeros([ROWS, COLUMNS] if TOKENS == 1 else [TOKENS, ROWS], tl.float32)
    for begin in range(0, n_columns, COLUMNS):
        column = begin + tl.arange(0, COLUMNS)[None, :]
        mask = (row < stop_row) & (column < n_columns)
        number = first + (row - first_row).to(tl.int64) * n_columns + column
        code = scales.unpacked(codes, number, mask, BITS, SIGNED)
        weight = scales.weights_of(
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
            GROUP_SIZE,
            SUPER_ROWS,
            SUPER_GROUPS,
            OFFSET,
        )
        weight = tl.where(mask, weight, 0)
        inputs = tl.load(
            x + (token * n_columns + column), mask=(token < n_tokens) & (column < n_columns), other=0
        )
        if TOKENS == 1:
            sums += weight * inputs.to(tl.float32)
        elif TO == floats.F32:
            sums = tl.dot(inputs, tl.trans(weight), sums, input_precision="ieee")
        else:
            # tf32 holds every bfloat16 and float16: what is multiplied is exact
            weight = floats.rounded_to(weight, TO)
            sums = tl.dot(inputs.to(tl.float32), tl.trans(weight), sums, input_precision="tf32")
    rows = tl.trans(row)
    if TOKENS == 1:
        sums = tl.trans(tl.sum(sums, axis=1, keep_dims=True))
    tl.store(y + (token * y_stride + rows), sums, mask=(token < n_tokens) & (rows < stop_row))


@triton.jit
def correct(
    x,
    codes,
    y,
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
    scale_steps,
    scale_zeros,
    offset,
    offset_steps,
    offset_zeros,
    n_groups,
    n_tiles,
    BITS: tl.constexpr,
    SIGNED: tl.constexpr,
    TO: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    SUPER_ROWS: tl.constexpr,
    SUPER_GROUPS: tl.constexpr,
    OFFSET: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """Program r: put the outliers of row first_row + r in place of what `multiply` computed with their codes."""
    row = first_row + tl.program_id(0)
    end = tl.load(row_begin + row + 1)
    for begin in range(tl.load(row_begin + row), end, AT_ONCE):
        number = begin + tl.arange(0, AT_ONCE)
        mask = number < end
        column = tl.load(columns + number, mask=mask, other=0)
        at = first + tl.program_id(0).to(tl.int64) * n_columns + column
        weight = scales.weights_of(
            scales.unpacked(codes, at, mask, BITS, SIGNED),
            row + tl.zeros_like(column),
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
            GROUP_SIZE,
            SUPER_ROWS,
            SUPER_GROUPS,
            OFFSET,
        )
        value = tl.load(values + number, mask=mask, other=0)
        change = floats.rounded_to(value, TO) - floats.rounded_to(weight, TO)
        for token in range(n_tokens):
            inputs = tl.load(x + (token * n_columns + column), mask=mask, other=0).to(tl.float32)
            change_here = tl.sum(tl.where(mask, change * inputs, 0), axis=0)
            place = y + (token * y_stride + row)
            tl.store(place, tl.load(place) + change_here)
