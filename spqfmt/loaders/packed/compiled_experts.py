"""What compilers see of packed experts: one operation of torch for a layer's, with known shapes.

Which experts are computed is a matter of numbers, which no graph has. Modules are named by a number, as weights are.
"""

import itertools
import threading
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch

from spqfmt.errors import SpqError
from spqfmt.loaders.packed.compiled import UNRECORDED


class Computing(Protocol):
    """A module of experts, as the operation uses it."""

    def computed(self, x: torch.Tensor, routing: list[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """Give what the experts make of `x`, in `dtype`; `routing` is what the module is called with besides."""


_MODULES: "weakref.WeakValueDictionary[int, Computing]" = weakref.WeakValueDictionary()
_NUMBERS = itertools.count()


def number_of(module: Computing) -> int:
    """A number of the module, by which the operation finds it as long as it lives."""
    number = next(_NUMBERS)
    _MODULES[number] = module
    return number


def _module(number: int) -> Computing:
    try:
        return _MODULES[number]
    except KeyError:
        raise SpqError("the packed experts that this was compiled for are gone; compile it again") from None


@torch.library.custom_op("spqfmt::experts", mutates_args=(), **UNRECORDED)
def experts(
    x: torch.Tensor, routing: list[torch.Tensor], module: int, dtype: torch.dtype, n_columns: int
) -> torch.Tensor:
    """`Computing.computed` of a module by its number, rows of `n_columns`."""
    return _module(module).computed(x, routing, dtype)


@experts.register_fake
def _(
    x: torch.Tensor, routing: list[torch.Tensor], module: int, dtype: torch.dtype, n_columns: int
) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], n_columns), dtype=dtype)


@torch.library.custom_op("spqfmt::experts_gradients", mutates_args=(), **UNRECORDED)
def gradients(
    gradient: torch.Tensor, x: torch.Tensor, routing: list[torch.Tensor], module: int
) -> list[torch.Tensor]:
    """Gradients of `x` and of each float tensor of `routing`, after another computation of what `experts` gave."""
    found = _module(module)

    def compute() -> list[torch.Tensor]:
        with torch.enable_grad():
            own, *others = (t.detach() for t in (x, *routing))
            wanted = [t.requires_grad_() for t in (own, *others) if t.is_floating_point()]
            y = found.computed(own, others, gradient.dtype)
            return [g.contiguous() for g in torch.autograd.grad(y, wanted, gradient)]

    return _elsewhere(compute)


@gradients.register_fake
def _(
    gradient: torch.Tensor, x: torch.Tensor, routing: list[torch.Tensor], module: int
) -> list[torch.Tensor]:
    return [
        torch.empty_like(t, memory_format=torch.contiguous_format)
        for t in (x, *routing)
        if t.is_floating_point()
    ]


def _elsewhere(compute: Callable[[], list[torch.Tensor]]) -> list[torch.Tensor]:
    """What `compute` gives in a thread of its own: in an operation's, torch notes nothing for gradients."""
    results: list[list[torch.Tensor]] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(compute())
        except BaseException as error:  # noqa: BLE001 # raised where it was asked for
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, routing, ctx.module, _, _ = inputs
    ctx.is_float = [t.is_floating_point() for t in routing]
    ctx.save_for_backward(x, *routing)


def _backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
    x, *routing = ctx.saved_tensors
    of_x, *others = gradients(gradient, x, routing, ctx.module)
    left = iter(others)
    return of_x, [next(left) if is_float else None for is_float in ctx.is_float], None, None, None


experts.register_autograd(_backward, setup_context=_keep)
