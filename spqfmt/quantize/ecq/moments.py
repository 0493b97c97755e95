"""What gradients tell of the outputs of a layer together."""

from dataclasses import dataclass

import torch

TOKENS_A_ROW = 16
"""Moments of fewer are mostly noise. So they take no more memory than gradients of 16 tokens a row have."""


@dataclass(frozen=True)
class OutputMoments:
    """Mean of g g^T over tokens, g the gradient by a layer's outputs; float32 [rows, rows]."""

    matrix: torch.Tensor
    n_tokens: int
