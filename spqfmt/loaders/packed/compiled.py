"""What compilers see of packed weights: operations of torch with known shapes, into which they do not look.

Weights are named by a number, which is a constant of the compiled graph.
"""

import itertools
import math
import weakref
from collections.abc import Sequence
from typing import cast

import torch
from torch import nn

from spqfmt.errors import SpqError
from spqfmt.loaders.packed.weights import Weights, decoded

_WEIGHTS: "weakref.WeakValueDictionary[int, Weights]" = weakref.WeakValueDictionary()
_NUMBERS = itertools.count()


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


@torch.library.custom_op("spqfmt::linear", mutates_args=())
def linear(
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


@linear.register_fake
def _(
    x: torch.Tensor,
    bias: torch.Tensor | None,
    weights: int,
    tensor: str,
    n_rows: int,
    int8_activations: bool | None,
) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], n_rows))


@torch.library.custom_op("spqfmt::linear_transposed", mutates_args=())
def linear_transposed(y: torch.Tensor, weights: int, tensor: str, n_columns: int) -> torch.Tensor:
    """`Weights.multiply_transposed` with the matrix of a tensor by its name."""
    found = _weights(weights)
    return found.multiply_transposed(found.matrix(tensor), y)


@linear_transposed.register_fake
def _(y: torch.Tensor, weights: int, tensor: str, n_columns: int) -> torch.Tensor:
    return y.new_empty((*y.shape[:-1], n_columns))


@torch.library.custom_op("spqfmt::look_up", mutates_args=())
def look_up(ids: torch.Tensor, weights: int, tensor: str, n_columns: int, dtype: torch.dtype) -> torch.Tensor:
    """`Weights.look_up`, whose rows are of `dtype`."""
    return _weights(weights).look_up(tensor, ids)


@look_up.register_fake
def _(ids: torch.Tensor, weights: int, tensor: str, n_columns: int, dtype: torch.dtype) -> torch.Tensor:
    return ids.new_empty((*ids.shape, n_columns), dtype=dtype)


@torch.library.custom_op("spqfmt::values", mutates_args=())
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
