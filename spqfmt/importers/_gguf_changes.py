"""How a tensor of a GGUF file differs from the one of transformers' model: order of rows, direction, values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Turned = tuple[tuple[int, ...], tuple[int, ...]]
"""Dimensions of the elements of a model, and which of them is which dimension in the file."""


@dataclass(frozen=True)
class Change:
    """What llama.cpp's converter has done to a tensor, in the terms of the model's own.

    The matrix of a tensor has a row for each output: of a model's [..., in, out], which `transposed` says, these are
    the columns.
    """

    rows: Turned | None = None
    """Dimensions of these rows in the model's order, and their order in the file; None where it is the same."""
    transposed: bool = False
    columns: Turned | None = None
    """The same of its columns; not of a tensor that is transposed."""
    values: Callable[[torch.Tensor], torch.Tensor] | None = None
    """Gives the model's values of the file's; None where they are the same."""

    def fits(self, shape: tuple[int, ...], n_rows: int) -> bool:
        """Whether a tensor of the model's `shape` can have so many rows in the file."""
        if self.columns is not None and (len(shape) != 2 or prod(self.columns[0]) != shape[1]):
            return False
        if self.rows is None:
            return True
        n = prod(self.rows[0])
        outer = [prod(shape[:k]) for k in range(len(shape) + 1)]
        return n == n_rows if self.transposed else n in {n_rows, prod(shape)} and n in outer

    def turned(self, shape: tuple[int, ...]) -> Turned | None:
        """Return how elements of the model's `shape` become those of the file; None where they are in its order."""
        if self.rows is None and self.columns is None and not self.transposed:
            return None
        if self.columns is not None:
            dims, axes = self.rows or (shape[:1], (0,))
            of_columns, their_axes = self.columns
            return (*dims, *of_columns), (*axes, *(len(dims) + axis for axis in their_axes))
        if not self.transposed:
            assert self.rows is not None
            dims, axes = self.rows
            n_outer = next(n for n in range(len(shape) + 1) if prod(shape[:n]) == prod(dims))
            inner = shape[n_outer:]
            return (*dims, *inner), (*axes, *range(len(dims), len(dims) + len(inner)))
        *stack, columns, n_rows = shape
        dims, axes = self.rows or ((*stack, n_rows), tuple(range(len(stack) + 1)))
        at = next(n for n in range(len(dims) + 1) if prod(dims[:n]) == prod(stack))
        moved = [axis + (axis >= at) for axis in axes]
        return (*dims[:at], columns, *dims[at:]), (*moved, at)

    def order(self) -> NDArray[np.int64] | None:
        """Return which row of the file is each row of the model's matrix; None where they are in order."""
        if self.rows is None:
            return None
        dims, axes = self.rows
        inverse = np.argsort(axes)
        in_file = np.arange(prod(dims)).reshape([dims[axis] for axis in axes])
        return np.ascontiguousarray(in_file.transpose(inverse)).reshape(-1)

    def column_order(self) -> NDArray[np.int64] | None:
        """Return which column of the model's matrix is each column of the file; None where they are in order."""
        if self.columns is None:
            return None
        dims, axes = self.columns
        return np.ascontiguousarray(np.arange(prod(dims)).reshape(dims).transpose(axes)).reshape(-1)

    def restore(self, stored: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """Return the model's tensor of the file's elements."""
        turned = self.turned(shape)
        if turned is not None:
            dims, axes = turned
            inverse = [axes.index(axis) for axis in range(len(axes))]
            stored = stored.reshape([dims[axis] for axis in axes]).permute(inverse).contiguous()
        found = stored.reshape(shape)
        return found if self.values is None else self.values(found)


AS_STORED = Change()


def interleaved(n_rows: int, n_heads: int) -> Change:
    """Rows of queries or keys in llama.cpp's rotary order: transformers keeps the halves of a head apart."""
    return Change(rows=((n_heads, 2, n_rows // n_heads // 2), (0, 2, 1)))


def minus_one(values: torch.Tensor) -> torch.Tensor:
    """Norms that transformers keeps as the difference to one."""
    return values - 1
