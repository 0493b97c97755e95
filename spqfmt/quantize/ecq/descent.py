"""Codes made better after the feedback: one after the other becomes the best that it can be beside all others.

The feedback chooses a code knowing the columns before it, and what the columns behind it can make up for at best. Once
all are chosen, a code may be no longer the cheapest in E H E^T + slope * bits, with E the error and H the Hessian.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from spqfmt.codecs.elements import Elements
from spqfmt.kernels.products import one_thread
from spqfmt.kernels.rate import ESCAPE
from spqfmt.quantize.ecq.coding import APART, Coding
from spqfmt.quantize.ecq.counts import BLOCK, code_bits, counts_of, threads_for
from spqfmt.schemes.base import Float32


def descend(
    codes: Elements,
    weights: Float32,
    sweeps: int,
    *,
    coding: Coding = APART,
    kept: Float32,
    hessian: torch.Tensor,
    row_step: Float32,
    column_step: Float32,
    slope: Float32,
    others: NDArray[np.int64] | None = None,
) -> Elements:
    """Better codes for `weights`, int8 [rows, columns], each looked at again `sweeps` times.

    Escapes stay, at the values `kept`, those of one row after those of another. `others` are the counts of codes that
    have the same table and are not looked at here.

    All are in the order of the columns of `hessian`, float32 [columns, columns], where products are made.
    `slope` [rows] is what a bit is worth in the unit of E H E^T.
    """
    codes, device = codes.copy(), hessian.device
    errors = _errors(codes, weights, kept=kept, row_step=row_step, column_step=column_step)
    there = errors.to(device) @ hessian
    gradients = there.cpu()
    n, threads = weights.shape[1], threads_for(weights.size)
    with one_thread():
        for _ in range(sweeps):
            counts = counts_of(coding.stored(codes))
            bits = code_bits(counts if others is None else counts + others)
            for first in range(0, n, BLOCK):
                block = slice(first, min(first + BLOCK, n))
                chosen = np.ascontiguousarray(codes[:, block])
                if device.type != "cpu":
                    gradients[:, block] = there[:, block].cpu()
                changes = coding.improve(
                    gradients.numpy(),
                    block,
                    hessian[block, block].cpu().numpy(),
                    chosen,
                    row_step=row_step,
                    column_step=column_step[block],
                    slope=slope,
                    bits=bits,
                    n_threads=threads,
                )
                codes[:, block] = chosen
                if device.type != "cpu":
                    there[:, block] = gradients[:, block].to(device)
                moved = torch.from_numpy(changes).to(device)
                there[:, : block.start].addmm_(moved, hessian[block, : block.start])
                there[:, block.stop :].addmm_(moved, hessian[block, block.stop :])
    return codes


def _errors(
    codes: Elements, weights: Float32, *, kept: Float32, row_step: Float32, column_step: Float32
) -> torch.Tensor:
    """What stands for the weights less these, [rows, columns]."""
    values = codes.astype(np.float32)
    values *= row_step[:, None]
    values *= column_step
    values[codes == ESCAPE] = kept
    values -= weights
    return torch.from_numpy(values)
