"""Codes -> weights in memory, tile by tile."""

import triton
import triton.language as tl

from spqfmt.kernels.triton import floats, scales


@triton.jit
def dequantize(
    codes,
    out,
    order,
    permutation,
    first,
    first_channel,
    stop_channel,
    width,
    n_columns,
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
    BY_COLUMNS: tl.constexpr,
    TO: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    SUPER_ROWS: tl.constexpr,
    SUPER_GROUPS: tl.constexpr,
    OFFSET: tl.constexpr,
    CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Program (c, e): CHANNELS channels by WIDTH codes of each.

    A channel has `width` codes; code number `first` is the first of channel `first_channel`. Pointers to what is not
    there are None; see spqfmt.kernels.device.matrix.
    """
    channel = first_channel + tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)[:, None]
    element = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)[None, :]
    mask = (channel < stop_channel) & (element < width)
    number = first + (channel - first_channel).to(tl.int64) * width + element
    code = scales.unpacked(codes, number, mask, BITS, SIGNED)
    if BY_COLUMNS:
        row, column = element, channel
        to = row.to(tl.int64) * (stop_channel - first_channel) + (channel - first_channel)
        if order is not None:
            column = tl.load(order + channel, mask=channel < stop_channel, other=0)
    else:
        row, column = channel, element
        to = (row - first_channel).to(tl.int64) * n_columns
        if permutation is not None:
            to += tl.load(permutation + column, mask=column < n_columns, other=0)
        else:
            to += column
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
    floats.store(out + to, weight, mask, TO)
