"""A few tokens times packed weights."""

import torch

from spqfmt.kernels.device.matrix import Matrix
from spqfmt.kernels.torch_device.weights import float_weights


def multiply(
    x: torch.Tensor, codes: torch.Tensor, matrix: Matrix, rows: range, y: torch.Tensor, first: int
) -> None:
    """y[:, rows] = x W[rows]^T in float32; for several tokens W is rounded to x's dtype first."""
    weights = float_weights(codes, matrix, rows, first)
    if len(x) > 1:
        weights = weights.to(x.dtype).float()
    y[:, rows.start : rows.stop] = x.float() @ weights.t()
