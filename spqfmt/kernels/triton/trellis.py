"""Path codes -> codes (FORMAT.md 5.3): a program goes down some columns, whose last rows it has in registers."""

import triton
import triton.language as tl

from spqfmt.kernels import torch_rans
from spqfmt.kernels.device import unfolding

COLUMNS = tl.constexpr(unfolding.COLUMNS)
RECORD_WORDS = tl.constexpr(unfolding.RECORD_WORDS)
FAULT = tl.constexpr(1 << torch_rans.PATH_FAULT)


@triton.jit
def unfold_paths(records, out, error):
    """`out` uint8; program p turns what record p says."""
    record = records + tl.program_id(0) * RECORD_WORDS
    n_rows, height, stride = tl.load(record + 1), tl.load(record + 2), tl.load(record + 3)
    column = tl.arange(0, COLUMNS)
    mask = column < tl.load(record + 4)
    at = tl.load(record) + column
    one = tl.zeros([COLUMNS], tl.int32)
    two, three, wrong = one, one, one
    left = height
    for _ in range(n_rows):
        path = tl.load(out + at, mask=mask, other=0).to(tl.int32)
        wrong |= path ^ (path * 2)
        code = ((path * 2) & 0xFF) | (((one >> 1) ^ two ^ three) & 1)
        tl.store(out + at, code.to(tl.uint8), mask=mask)
        at += stride
        left -= 1
        # Behind the last row of a tile the next one begins, with nothing before it.
        goes_on = tl.where(left == 0, 0, 1)
        left = tl.where(left == 0, height, left)
        three, two, one = two * goes_on, one * goes_on, code * goes_on
    is_wrong = (wrong & 0x80) != 0
    tl.atomic_or(error + tl.zeros_like(wrong), tl.where(is_wrong, FAULT, 0), mask=is_wrong, sem="relaxed")
