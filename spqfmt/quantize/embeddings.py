"""Embedding and head under a method that is about the layers: rounded to nearest by rows, or kept."""

import torch

from spqfmt.errors import OptionError
from spqfmt.quantize.base import MethodOptions, Weight, as_matrix
from spqfmt.quantize.rtn import BITS, KEEP, round_symmetric
from spqfmt.schemes.uniform import Uniform

DEFAULT_BITS = 8


def check_bits(options: MethodOptions, default: int) -> tuple[int, int]:
    """Bits of the layers and of the embeddings, both valid; OptionError otherwise."""
    bits = default if options.bits is None else options.bits
    embedding_bits = DEFAULT_BITS if options.embedding_bits is None else options.embedding_bits
    if bits not in BITS or embedding_bits not in {*BITS, KEEP}:
        raise OptionError("bits must be from 2 to 8, embedding bits from 2 to 8 or 16 to keep them")
    return bits, embedding_bits


def describe(weight: Weight, options: MethodOptions) -> str:
    """As Method.describe, for a tensor that is no layer."""
    if weight.role not in {"embedding", "head"} or options.embedding_bits == KEEP:
        return ""
    return f"{options.embedding_bits} bits per row"


def quantize(weight: Weight, value: torch.Tensor, options: MethodOptions) -> Uniform:
    """As Method.quantize, where `describe` said something."""
    assert options.embedding_bits is not None
    return round_symmetric(as_matrix(weight, value), options.embedding_bits, per_row=True)
