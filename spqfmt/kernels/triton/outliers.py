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
    first_row,
    first_channel,
    stop_channel,
    width,
    BY_COLUMNS: tl.constexpr,
    TO: tl.constexpr,
):
    """Program r: the outliers of row first_row + r. `width`: columns of `out`, which begins at row `first_row`.

    By columns `out` has channels first_channel to stop_channel alone; `places`, the channel of each column, may be
    None.
    """
    row = first_row + tl.program_id(0)
    end = tl.load(row_begin + row + 1)
    for begin in range(tl.load(row_begin + row), end, AT_ONCE):
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
