"""Products with packed weights as torch's own functions use them: with gradients for their inputs, and compiled."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from spqfmt.loaders.packed import compiled
from spqfmt.loaders.packed.weights import Weights
from spqfmt.records import TensorRecord


@dataclass(frozen=True)
class Operand:
    """The matrix of one tensor. `number` is that of its weights in compiled graphs.

    `is_recordable`: whether a compiler may make a CUDA graph of products.
    """

    weights: Weights
    number: int
    tensor: str
    matrix: Any
    shape: tuple[int, int]
    is_recordable: bool

    @classmethod
    def of(cls, weights: Weights, number: int, record: TensorRecord) -> "Operand":
        """The matrix of a record's tensor."""
        return cls(
            weights,
            number,
            tensor=record.name,
            matrix=weights.matrix(record.name),
            shape=record.matrix_shape,
            is_recordable=weights.is_recordable(record.name),
        )


def product(
    operand: Operand, x: torch.Tensor, bias: nn.Parameter | None, *, int8_activations: bool | None
) -> torch.Tensor:
    """`x` [..., columns] times the matrix and plus `bias`: [..., rows] in x's dtype.

    Gradients go to `x` as if activations were not rounded, and to `bias`; the matrix has none. Where they are wanted,
    inputs are rounded only if `int8_activations` asks for it.
    """
    wanted = x.requires_grad or (bias is not None and bias.requires_grad)
    if torch.compiler.is_compiling():
        linear = compiled.linear if operand.is_recordable else compiled.linear_unrecorded
        traced: torch.Tensor = linear(
            x,
            bias,
            weights=operand.number,
            tensor=operand.tensor,
            n_rows=operand.shape[0],
            int8_activations=int8_activations,
        )
        return traced
    if wanted and torch.is_grad_enabled():
        y: torch.Tensor = _Product.apply(x, bias, operand, bool(int8_activations))  # type: ignore[no-untyped-call]
        return y
    return operand.weights.multiply(operand.matrix, x, bias, int8_activations=int8_activations)


class _Product(torch.autograd.Function):
    """Keeps nothing for the way back: the codes are there, and are decoded again."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, bias: nn.Parameter | None, operand: Operand, int8_activations: bool | None
    ) -> torch.Tensor:
        # Not the matrix: torch lets go of no graph that is still there when Python ends, and native code complains.
        ctx.weights, ctx.tensor = operand.weights, operand.tensor
        y = operand.weights.multiply(operand.matrix, x, bias, int8_activations=int8_activations)
        # Not as the view that it may be: models add to what they get in place, which torch has no gradients for then.
        result: torch.Tensor = torch.ops.aten._unsafe_view(y, y.shape)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        of_x = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = ctx.weights.multiply_transposed(ctx.weights.matrix(ctx.tensor), gradient)
        if ctx.needs_input_grad[1]:
            of_bias = summed(gradient)
        return of_x, of_bias, None, None


def summed(gradient: torch.Tensor) -> torch.Tensor:
    """A bias's gradient: the sum over tokens, in float32."""
    return gradient.reshape(-1, gradient.shape[-1]).sum(0, dtype=torch.float32)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, bias, ctx.weights, ctx.tensor, _, _ = inputs
    ctx.n_columns, ctx.bias_dtype = x.shape[-1], None if bias is None else bias.dtype


def _backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    of_x = of_bias = None
    if ctx.needs_input_grad[0]:
        of_x = compiled.linear_transposed(gradient, ctx.weights, ctx.tensor, ctx.n_columns)
    if ctx.needs_input_grad[1]:
        of_bias = summed(gradient).to(ctx.bias_dtype)
    return of_x, of_bias, None, None, None, None


for _each in (compiled.linear, compiled.linear_unrecorded):
    _each.register_autograd(_backward, setup_context=_keep)
