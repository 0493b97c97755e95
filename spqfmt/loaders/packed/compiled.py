"""What compilers see of packed weights: operations of torch with known shapes, into which they do not look.

Weights are named by a number, which is a constant of the compiled graph. Of products and look-ups there are two: one
for weights that stay decoded, and one that no CUDA graph may hold, as what decodes for it is no part of such a graph.
"""

import itertools
import math
import weakref
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn

from spqfmt.errors import SpqError
from spqfmt.loaders.packed.weights import Weights, decoded

_WEIGHTS: "weakref.WeakValueDictionary[int, Weights]" = weakref.WeakValueDictionary()
_NUMBERS = itertools.count()


_UNSAFE = getattr(torch.Tag, "cudagraph_unsafe", None)
UNRECORDED: dict[str, Any] = {} if _UNSAFE is None else {"tags": (_UNSAFE,)}
"""torch that has no such tag (before 2.8) makes CUDA graphs of everything, which then have to be turned off."""


def number_of(weights: Weights) -> int:
    """A number of the weights, by which operations find them as long as they live."""
    number = next(_NUMBERS)
    _WEIGHTS[number] = weights
    return number


def _weights(number: int) -> Weights:
    try:
        return _WEIGHTS[number]
    except KeyError:
        raise SpqError("the packed weights that this was compiled for are gone; compile it again") from None


def _linear(
    x: torch.Tensor,
    bias: torch.Tensor | None,
    weights: int,
    tensor: str,
    n_rows: int,
    int8_activations: bool | None,
) -> torch.Tensor:
    """`Weights.multiply` with the matrix of a tensor by its name."""
    found = _weights(weights)
    return found.multiply(
        found.matrix(tensor), x, cast("nn.Parameter | None", bias), int8_activations=int8_activations
    )


def _linear_like(
    x: torch.Tensor,
    bias: torch.Tensor | None,
    weights: int,
    tensor: str,
    n_rows: int,
    int8_activations: bool | None,
) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], n_rows))


linear = torch.library.custom_op("spqfmt::linear", _linear, mutates_args=())
linear_unrecorded = torch.library.custom_op(
    "spqfmt::linear_unrecorded", _linear, mutates_args=(), **UNRECORDED
)
for _each in (linear, linear_unrecorded):
    _each.register_fake(_linear_like)


@torch.library.custom_op("spqfmt::linear_transposed", mutates_args=(), **UNRECORDED)
def linear_transposed(y: torch.Tensor, weights: int, tensor: str, n_columns: int) -> torch.Tensor:
    """`Weights.multiply_transposed` with the matrix of a tensor by its name."""
    found = _weights(weights)
    return found.multiply_transposed(found.matrix(tensor), y)


@linear_transposed.register_fake
def _(y: torch.Tensor, weights: int, tensor: str, n_columns: int) -> torch.Tensor:
    return y.new_empty((*y.shape[:-1], n_columns))


def _look_up(
    ids: torch.Tensor, weights: int, tensor: str, n_columns: int, dtype: torch.dtype
) -> torch.Tensor:
    """`Weights.look_up`, whose rows are of `dtype`."""
    return _weights(weights).look_up(tensor, ids)


def _look_up_like(
    ids: torch.Tensor, weights: int, tensor: str, n_columns: int, dtype: torch.dtype
) -> torch.Tensor:
    return ids.new_empty((*ids.shape, n_columns), dtype=dtype)


look_up = torch.library.custom_op("spqfmt::look_up", _look_up, mutates_args=())
look_up_unrecorded = torch.library.custom_op(
    "spqfmt::look_up_unrecorded", _look_up, mutates_args=(), **UNRECORDED
)
for _each in (look_up, look_up_unrecorded):
    _each.register_fake(_look_up_like)


@torch.library.custom_op("spqfmt::values", mutates_args=(), **UNRECORDED)
def values(
    weights: int,
    tensor: str,
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    transposed: bool,
) -> torch.Tensor:
    """A tensor as the model has it, decoded."""
    n_bytes = math.prod(shape) * dtype.itemsize
    return decoded(_weights(weights), tensor, n_bytes, transposed=transposed)


@values.register_fake
def _(
    weights: int,
    tensor: str,
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    transposed: bool,
) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=device)
