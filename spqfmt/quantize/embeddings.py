"""Embedding and head under a method that is about the layers: rounded to nearest by rows, or kept."""

import torch

from spqfmt.quantize.base import MethodOptions, Weight, as_matrix
from spqfmt.quantize.checks import KEEP
from spqfmt.quantize.rtn import round_symmetric
from spqfmt.schemes.uniform import Uniform


def describe(weight: Weight, options: MethodOptions) -> str:
    """Say what `Method.describe` says, for a tensor that is no layer."""
    if weight.role not in {"embedding", "head"} or options.embedding_bits == KEEP:
        return ""
    return f"{options.embedding_bits} bits per row"


def quantize(weight: Weight, value: torch.Tensor, options: MethodOptions) -> Uniform:
    """Quantize as `Method.quantize` does, where `describe` said something."""
    assert options.embedding_bits is not None
    return round_symmetric(as_matrix(weight, value), options.embedding_bits, per_row=True)
