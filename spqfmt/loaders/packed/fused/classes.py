"""How a module becomes one of a class that stands in front of its own, and when what it calls is only called."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import torch
from torch import nn

from spqfmt.loaders.packed.modules import PackedLinear

_SAYS_NOTHING = frozenset({"training", "__class__"})
_CHANGED = "_is_changed"

ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What modules raise that were tried for something that they are not."""


class Front(nn.Module):
    """What stands in front of a module's class, until anything is set in the module: then it may compute otherwise."""

    _form: Any
    _own: Any  # the module's class

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in _SAYS_NOTHING:
            return
        if "_own" in vars(type(self)):
            self.__class__ = self._own
        else:
            # Somebody's class on top of it stays; what is in front of its own computes nothing any more.
            vars(self)[_CHANGED] = True


def is_in_front(module: nn.Module, front: type) -> bool:
    """Whether `front` still computes for a module: whoever has kept its forward calls that later, too."""
    return isinstance(module, front) and _CHANGED not in module.__dict__


def own_forward(module: nn.Module, front: Any) -> Callable[..., Any]:
    """The forward of the module's class, whether or not `front` still stands before it."""
    found: Callable[..., Any] = (
        super(front, module).forward if isinstance(module, front) else type(module).forward.__get__(module)
    )
    return found


def stand_in_front(module: nn.Module, front: Any, form: Any) -> None:
    """Make `module` one of the class `front` and its own, by the same name, with `form` as what it computes."""
    own: Any = type(module)
    vars(module)["_form"] = form
    module.__class__ = _class_of(front, own)


@cache
def _class_of(front: Any, own: Any) -> Any:
    names = {"__module__": own.__module__, "__qualname__": own.__qualname__, "_own": own}
    return type(own.__name__, (front, own), names)


def is_only_called(parent: nn.Module, children: Mapping[str, nn.Module]) -> bool:
    """Whether calling these children of `parent` is calling their class's forward: no hooks, and none was replaced."""
    own = parent._modules
    for name, child in children.items():
        if (
            own.get(name) is not child
            or child._forward_hooks
            or child._forward_pre_hooks
            or child._backward_hooks
            or child._backward_pre_hooks
            or "forward" in child.__dict__
        ):
            return False
    return not has_global_hooks()


def has_global_hooks() -> bool:
    """Whether torch has hooks for the calls of all modules."""
    has: bool = nn.modules.module._has_any_global_hook()  # type: ignore[no-untyped-call]
    return has


Fake = Callable[[torch.Tensor, nn.Parameter | None], torch.Tensor]
"""(x, bias): what stands for a product while a module is tried."""


def packed_linears(module: nn.Module, names: tuple[str, ...]) -> dict[str, PackedLinear] | None:
    """Children by these names, which are packed; None where one is not."""
    found = {}
    for name in names:
        child = module._modules.get(name)
        if type(child) is not PackedLinear:
            return None
        found[name] = child
    return found


def multiplied(linear: PackedLinear, x: torch.Tensor) -> torch.Tensor:
    """What a layer that is only called gives, by one native call where that can be."""
    direct = linear._direct
    y = None if direct is None else direct(x, linear.bias)
    return linear.forward(x) if y is None else y


def wants_more(x: torch.Tensor) -> bool:
    """Whether an input wants more than values: gradients, or autocast's dtypes."""
    return torch.is_autocast_enabled("cpu") or (torch.is_grad_enabled() and x.requires_grad)


@contextlib.contextmanager
def instead_of_products(linears: Mapping[str, PackedLinear], fakes: Mapping[str, Fake]) -> Iterator[None]:
    """Let layers give what `fakes` do: a module is tried without a product, with numbers of any size."""
    kept = {name: linear._direct for name, linear in linears.items()}
    try:
        for name, linear in linears.items():
            linear._direct = fakes[name]
        yield
    finally:
        for name, linear in linears.items():
            linear._direct = kept[name]
