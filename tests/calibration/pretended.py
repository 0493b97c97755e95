"""A device that is not there: tensors that say they lie on cuda:0, computed by the processor.

As on a real device, tensors of both sides do not go together, and numpy reads none of these.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

_DEVICE = torch.device("cuda:0")
_ACROSS = frozenset({"copy_", "__setitem__", "__getitem__", "to", "type_as"})
"""What takes tensors of both sides."""
_ON_THE_HOST = frozenset({"numpy", "__array__", "tofile"})


_N_CALLS: Counter[str] = Counter()


class _There(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if func == torch.Tensor.device.__get__:  # type: ignore[attr-defined]
            return _DEVICE
        if func == torch.Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
            return True
        if name in _ON_THE_HOST:
            raise TypeError(f"{name} of a tensor of {_DEVICE}")
        if name == "cpu":
            return args[0].as_subclass(torch.Tensor).clone()
        found = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        mixed = [x for x in found if not isinstance(x, _There) and x.dim() and not x.is_meta]
        if name == "_has_compatible_shallow_copy_type":
            return not mixed
        if mixed and name not in _ACROSS:
            raise RuntimeError(f"{name}: tensors of the processor and of {_DEVICE}")
        _N_CALLS[name] += 1
        return super().__torch_function__(func, types, args, kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copy = self.detach().clone()
        return torch.nn.Parameter(copy, self.requires_grad) if isinstance(self, torch.nn.Parameter) else copy


class _Devices(TorchFunctionMode):
    """Factories and moves that name the device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name == "to":
            return _moved(func, args, kwargs)
        device = kwargs.get("device")
        if device is None or torch.device(device).type == "cpu":
            if device is not None and any(isinstance(x, _There) for x in args):
                args = tuple(x.cpu() if isinstance(x, _There) else x for x in args)
            return func(*args, **kwargs)
        if torch.device(device).type != "cuda":
            return func(*args, **kwargs)
        made = func(*args, **(kwargs | {"device": "cpu"}))
        return made.as_subclass(_There)


def _moved(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensor, *rest = args
    target = kwargs.pop("device", None)
    for at, value in enumerate(rest):
        if isinstance(value, torch.Tensor):
            target = value.device
            rest[at] = value.dtype
        elif isinstance(value, str | torch.device):
            target = value
            del rest[at]
            break
    plain = tensor
    if target is not None and torch.device(target).type != tensor.device.type:
        goes = torch.device(target).type
        if goes not in {"cpu", "cuda"}:
            return func(tensor, target, *rest, **kwargs)
        if not tensor.is_meta:
            plain = tensor.cpu() if goes == "cpu" else tensor.clone().as_subclass(_There)
    return func(plain, *rest, **kwargs) if rest or kwargs else plain


@contextmanager
def a_device() -> Iterator[Counter[str]]:
    """While the context lasts, this thread has cuda:0; how often it was asked for what is counted."""
    _N_CALLS.clear()
    with _Devices():
        yield _N_CALLS
