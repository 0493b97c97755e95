"""Graphs of the simulated device: what torch is asked for is written down with the memory that it has, and done again.

Python is not run again, and addresses stay, as with CUDA's graphs. While they are recorded nothing that writes is done,
what results has no values afterwards, and what CUDA forbids raises BackendError: whatever makes the host wait for a
value or for an event, whatever comes from the host's memory, and kernels that were never launched before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spqfmt.errors import BackendError
from spqfmt.kernels.torch_device.launching import recorded_by
from spqfmt.loaders.device.seam import Memory, Queue, Work

_POISON = 0xA5
_WITH_MASKS = {"aten::index", "aten::index_put", "aten::index_put_"}
"""A mask as an index is made numbers first, which the host counts."""
_OF_THE_HOST = {"aten::lift_fresh", "aten::lift_fresh_copy", "aten::_pin_memory"}


_TO_THE_HOST = {torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu, torch.Tensor.__array__}
"""What torch does on the CPU without asking its dispatcher."""


class _HostReads(TorchFunctionMode):
    """Refuses what gives the host values without an operation."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _TO_THE_HOST:
            raise BackendError(f"{func.__name__} while a graph is recorded: the host would wait for values")
        return func(*args, **(kwargs or {}))


class Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What is given while this is entered. `queues` are those that belong to it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.queues = {Queue.COMPUTE}
        self._works: list[Work] = []
        self._steps: list[Callable[[], None]] = []
        self._made: list[torch.Tensor] = []

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Record what this thread asks torch and the kernels for. What was made has no values in the end."""
        with ExitStack() as stack:
            stack.enter_context(recorded_by(self._steps.append))
            stack.enter_context(self)
            stack.enter_context(_HostReads())
            yield
        for tensor in self._made:
            storage: Any = tensor.untyped_storage()
            storage.fill_(_POISON)

    def add(self, stream: Queue, work: Work) -> None:
        """The work that is given now is of this. Raises BackendError where its queue is not."""
        if stream not in self.queues:
            raise BackendError(f"{work.label!r} is given to {stream.value}, which no graph records")
        self._works.append(work)

    @property
    def work(self) -> Work:
        """All of it, as one work."""
        reads: dict[int, Memory] = {id(m): m for work in self._works for m in work.reads}
        writes: dict[int, Memory] = {id(m): m for work in self._works for m in work.writes}
        return Work("a graph", tuple(reads.values()), tuple(writes.values()))

    def again(self) -> None:
        """Do all of it."""
        for step in self._steps:
            step()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with self:
            found = func.decompose(*args, **kwargs)
        if found is not NotImplemented:
            return found
        _refuse(func, args, kwargs)
        if func._schema.is_mutable:
            self._steps.append(partial(func, *args, **kwargs))
            return _written(func, args, kwargs)
        result = func(*args, **kwargs)
        given = {_storage(t) for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        made = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor) and _storage(t) not in given]
        if made:
            self._made += made
            self._steps.append(partial(_repeat, func, args, kwargs, made=made))
        return result


def _storage(tensor: torch.Tensor) -> int:
    number: int = tensor.untyped_storage()._cdata
    return number


def _refuse(func: Any, args: Any, kwargs: Any) -> None:
    """Raise BackendError for what no stream can be given while it is recorded."""
    name = func._schema.name
    indices = args[1] if name in _WITH_MASKS else ()
    waits = (
        torch.Tag.data_dependent_output in func.tags
        or any(i is not None and i.dtype in {torch.bool, torch.uint8} for i in indices)
        or (
            torch.Tag.dynamic_output_shape in func.tags
            and name not in _WITH_MASKS
            and kwargs.get("output_size") is None
        )
    )
    if waits:
        raise BackendError(f"{name} while a graph is recorded: the host would wait for values")
    if name in _OF_THE_HOST:
        raise BackendError(f"{name} while a graph is recorded: what is copied lies in the host's memory")


def _written(func: Any, args: Any, kwargs: Any) -> Any:
    """What an operation that writes into its arguments returns: those, which have their old values still."""
    values = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
    written = [
        values[argument.name]
        for argument in func._schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    n = len(func._schema.returns)
    assert n <= len(written), f"{func} returns more than it writes"
    return None if n == 0 else written[0] if n == 1 else tuple(written[:n])


def _repeat(func: Any, args: Any, kwargs: Any, made: list[torch.Tensor]) -> None:
    """Do an operation again into the memory that its results had."""
    result = func(*args, **kwargs)
    given = {_storage(t) for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
    again = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor) and _storage(t) not in given]
    for tensor, new in zip(made, again, strict=True):
        tensor.copy_(new)
