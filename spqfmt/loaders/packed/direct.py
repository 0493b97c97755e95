"""The product of a few tokens with codes in memory, with nothing between a module and the native call.

A layer of a small model takes some ten microseconds for a token, and each function of Python on the way half of one.
So what does not change is bound once, and everything unusual is left to the general way.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from spqfmt.codecs.threads import wanted_threads
from spqfmt.kernels.context import Context, current
from spqfmt.kernels.multiply import NO_BIAS, CodeMatrices
from spqfmt.loaders.packed.weights import DirectProduct, DirectProducts
from spqfmt.loaders.schemes.base import WholeProduct
from spqfmt.loaders.schemes.matrix import FEW_TOKENS, TYPES, floats


def direct_product(
    whole: WholeProduct, dtype: torch.dtype, context: Context, *, rounds: bool
) -> DirectProduct | None:
    """What multiplies by `whole`: None for what is no plain tensor of `dtype` on the CPU, of few tokens, without gaps.

    Nor does it where gradients are wanted, under autocast, and for whoever has a context of his own.
    """
    native, codes, (n_rows, n_columns) = whole.matrix.multiply, whole.codes, whole.matrix.shape
    number, threads = TYPES[dtype], wanted_threads(context)
    takes = _takes(n_columns, dtype, context)

    one = torch.empty(1, dtype=dtype)
    last = torch.Size(), one

    def product(x: torch.Tensor, bias: nn.Parameter | None) -> torch.Tensor | None:
        nonlocal last
        if not takes(x) or (bias is not None and bias.requires_grad and torch.is_grad_enabled()):
            return None
        shape = x.shape
        known, like = last
        if known != shape:
            like = one.expand(*shape[:-1], n_rows)
            last = shape, like
        y = torch.empty_like(like)  # in half the time that making it from numbers takes
        added = NO_BIAS if bias is None else floats(bias)
        n_threads = torch.get_num_threads() if threads is None else threads
        native(
            *(codes, 0, n_rows, x.data_ptr(), number, x.numel() // n_columns, y.data_ptr()),
            *added,
            n_threads,
            rounds,
        )
        return y

    return product


def direct_products(
    wholes: Sequence[WholeProduct], dtype: torch.dtype, context: Context, *, rounds: bool
) -> DirectProducts | None:
    """What multiplies by all of `wholes` in one call, as `direct_product` by one; None: they differ in columns."""
    n_columns = wholes[0].matrix.shape[1]
    if any(whole.matrix.shape[1] != n_columns for whole in wholes):
        return None
    matrices = CodeMatrices([(whole.matrix, whole.codes) for whole in wholes])
    native, rows = matrices.multiply, [whole.matrix.shape[0] for whole in wholes]
    number, threads = TYPES[dtype], wanted_threads(context)
    takes = _takes(n_columns, dtype, context)

    one = torch.empty(1, dtype=dtype)
    last: tuple[torch.Size, list[torch.Tensor]] = torch.Size(), []

    def products(x: torch.Tensor, biases: Sequence[nn.Parameter | None]) -> Sequence[torch.Tensor] | None:
        nonlocal last
        if not takes(x):
            return None
        shape = x.shape
        known, likes = last
        if known != shape:
            likes = [one.expand(*shape[:-1], n_rows) for n_rows in rows]
            last = shape, likes
        ys = [torch.empty_like(like) for like in likes]
        outputs: list[int] = []
        for y, bias in zip(ys, biases, strict=True):
            if bias is None:
                outputs += (y.data_ptr(), 0, 0)
            elif bias.requires_grad and torch.is_grad_enabled():
                return None
            else:
                outputs += (y.data_ptr(), *floats(bias))
        n_threads = torch.get_num_threads() if threads is None else threads
        native(x.data_ptr(), number, x.numel() // n_columns, tuple(outputs), n_threads, rounds)
        return ys

    return products


def _takes(n_columns: int, dtype: torch.dtype, context: Context) -> Callable[[torch.Tensor], bool]:
    """Whether an input, and the moment, are such that nothing but the product is wanted."""
    most = FEW_TOKENS * n_columns

    def takes(x: torch.Tensor) -> bool:
        return (
            type(x) is torch.Tensor
            and x.dtype is dtype
            and x.is_cpu
            and x.numel() <= most
            and x.shape[-1:] == (n_columns,)
            and x.is_contiguous()
            and current() is context
            and not torch.is_autocast_enabled("cpu")
            and not (x.requires_grad and torch.is_grad_enabled())
        )

    return takes
