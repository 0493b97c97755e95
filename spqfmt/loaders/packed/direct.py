"""The product of a few tokens with codes in memory, with nothing between a module and the native call.

A layer of a small model takes some ten microseconds for a token, and each function of Python on the way half of one.
So what does not change is bound once, and everything unusual is left to the general way.
"""

import torch
from torch import nn

from spqfmt.codecs.threads import wanted_threads
from spqfmt.kernels.context import Context, current
from spqfmt.kernels.multiply import NO_BIAS
from spqfmt.loaders.packed.weights import DirectProduct
from spqfmt.loaders.schemes.base import WholeProduct
from spqfmt.loaders.schemes.matrix import FEW_TOKENS, TYPES, floats


def direct_product(
    whole: WholeProduct, dtype: torch.dtype, context: Context, *, rounds: bool
) -> DirectProduct | None:
    """What multiplies by `whole`: None for what is no plain tensor of `dtype` on the CPU, of few tokens, without gaps.

    Nor does it where gradients are wanted, under autocast, and for whoever has a context of his own.
    """
    native, codes, n_rows, n_columns = whole
    number, threads = TYPES[dtype], wanted_threads(context)
    most = FEW_TOKENS * n_columns

    one = torch.empty(1, dtype=dtype)
    last = torch.Size(), one

    def product(x: torch.Tensor, bias: nn.Parameter | None) -> torch.Tensor | None:
        nonlocal last
        if (
            type(x) is not torch.Tensor
            or x.dtype is not dtype
            or not x.is_cpu
            or (n := x.numel()) > most
            or not (shape := x.shape)
            or shape[-1] != n_columns
            or not x.is_contiguous()
            or current() is not context
            or torch.is_autocast_enabled("cpu")
            or (torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)))
        ):
            return None
        known, like = last
        if known != shape:
            like = one.expand(*shape[:-1], n_rows)
            last = shape, like
        y = torch.empty_like(like)  # in half the time that making it from numbers takes
        added = NO_BIAS if bias is None else floats(bias)
        n_threads = torch.get_num_threads() if threads is None else threads
        native(
            codes, 0, n_rows, x.data_ptr(), number, n // n_columns, y.data_ptr(), *added, n_threads, rounds
        )
        return y

    return product
