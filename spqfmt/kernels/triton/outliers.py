"""Outliers into dequantized weights (FORMAT.md 5.4)."""

import triton
import triton.language as tl

from spqfmt.kernels.triton import floats

AT_ONCE = tl.constexpr(128)


@triton.jit
def replace(
    out,
    row_begin,
    columns,
    values,
    places,
    permutation,
    ids,
    first_row,
    first_channel,
    stop_channel,
    width,
    BY_COLUMNS: tl.constexpr,
    TO: tl.constexpr,
):
    """Program r: the outliers of row first_row + r. `width`: columns of `out`, which begins at row `first_row`.

    With `ids`, int64, row r of `out` is row ids[r], if that is one of channels first_channel to stop_channel.
    By columns `out` has channels first_channel to stop_channel alone; `places`, the channel of each column, may be
    None.
    """
    row = first_row + tl.program_id(0)
    if ids is not None:
        row = tl.load(ids + tl.program_id(0))
        is_here = (row >= first_channel) & (row < stop_channel)
        first = tl.load(row_begin + row, mask=is_here, other=0)
        end = tl.load(row_begin + row + 1, mask=is_here, other=0)
    else:
        first = tl.load(row_begin + row)
        end = tl.load(row_begin + row + 1)
    for begin in range(first, end, AT_ONCE):
        number = begin + tl.arange(0, AT_ONCE)
        mask = number < end
        place = tl.load(columns + number, mask=mask, other=0)
        value = tl.load(values + number, mask=mask, other=0)
        if BY_COLUMNS:
            if places is not None:
                place = tl.load(places + place, mask=mask, other=0)
            mask &= (place >= first_channel) & (place < stop_channel)
            place -= first_channel
        elif permutation is not None:
            place = tl.load(permutation + place, mask=mask, other=0)
        floats.store(out + (tl.program_id(0).to(tl.int64) * width + place), value, mask, TO)
