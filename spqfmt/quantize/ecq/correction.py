"""Weights that make up for what quantization has done to the layers before; arXiv 2504.02692, 2603.04956.

The inputs of a layer in the quantized model, x^, are not the x that it was trained on. Of all weights W' near W those
whose outputs on x^ are nearest to W x are W + W E[(x - x^) x^^T] (E[x^ x^^T] + damping)^-1. Where the output is
added to something, r, that is off as well, E[(r - r^) x^^T] stands beside W E[(x - x^) x^^T].
"""

import torch

from spqfmt.quantize.drift import Drift
from spqfmt.quantize.ecq.grid import InputGrid

SUM_SHARE = 0.5
"""How much of what a sum is off by a layer makes up for: later layers have their share in it."""
_NOISE_TOKENS = 1.0
"""A drift that was seen on so many tokens for each column is half noise, and half of it is corrected."""


def corrected(matrix: torch.Tensor, module: str, drift: Drift, grid: InputGrid) -> torch.Tensor:
    """The weights to be quantized in place of `matrix`, float32 [rows, columns]; the same where nothing is known.

    `drift` is of the inputs whose Hessian `grid` was made of.
    """
    inputs = drift.inputs
    if inputs is None or grid.exponent or not grid.upper.size:
        return matrix
    here = matrix.to(inputs.device)
    wanted = here @ inputs
    sums = drift.sums(module)
    if sums is not None and sums.shape == matrix.shape:
        wanted += SUM_SHARE * sums
    order = torch.from_numpy(grid.order).to(here.device)
    upper = torch.from_numpy(grid.upper).to(here.device)
    change = torch.empty_like(wanted)
    # The inverse of the damped Hessian, in the order of its columns, is U^T U.
    change[:, order] = wanted[:, order] @ upper.t() @ upper
    result = here + share_known(drift.n_tokens, matrix.shape[1]) * change
    return result.cpu() if torch.isfinite(result).all() else matrix


def share_known(n_tokens: int, n_columns: int) -> float:
    """How much of a drift is taken for more than noise."""
    return n_tokens / (n_tokens + _NOISE_TOKENS * n_columns)
