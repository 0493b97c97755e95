"""Which layers of a block read the same input, and where that input comes from; seen by running the block once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch.overrides import TorchFunctionMode

_Key: TypeAlias = tuple[int, int, int, int]


@dataclass(frozen=True)
class FoundSite:
    """Modules that read one input, by name inside the block; `producer` and `shared` as in quantize.calibrated.Site."""

    modules: tuple[str, ...]
    producer: str = ""
    shared: bool = False
    merged: str = ""
    """The slice of merged experts (experts.py) that reads the input; empty where it is modules that do."""
    is_whole: bool = False
    """Whether it reads every token of the samples, in their order."""
    added: tuple[str, ...] = ()
    """Those of the modules whose output is an operand of a sum, as it is."""

    @property
    def input_name(self) -> str:
        """The name that BlockRun knows the input by."""
        return self.merged or self.modules[0]


_ADDING = frozenset({"add", "__add__", "__radd__", "__iadd__", "add_"})


class Sums(TorchFunctionMode):
    """While the context lasts, both operands of every sum of two tensors of one shape go to `take`, in either order."""

    def __init__(self, take: Callable[[torch.Tensor, torch.Tensor], None]) -> None:
        super().__init__()
        self._take = take

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "") in _ADDING and len(args) > 1:
            one, other = args[:2]
            if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor) and one.shape == other.shape:
                self._take(one, other)
                self._take(other, one)
        return func(*args, **(kwargs or {}))


class Watch:
    """Notes inputs and outputs of every module of a block while it runs.

    All tensors are kept until the watch is dropped: memory that is used again would make two tensors look like one.
    """

    def __init__(self, block: torch.nn.Module) -> None:
        self._names = {module: name for name, module in block.named_modules() if module is not block}
        self._kept: list[torch.Tensor] = []
        self._leaves = {module for module in self._names if not any(True for _ in module.children())}
        self.inputs: dict[str, torch.Tensor] = {}
        self._readers: dict[_Key, list[str]] = {}
        self._writers: dict[_Key, str] = {}
        self._added: set[str] = set()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Watch the block's modules while the context lasts."""
        with ExitStack() as stack:
            for module in self._leaves:
                stack.callback(module.register_forward_pre_hook(self._before).remove)
                stack.callback(module.register_forward_hook(self._after).remove)
            stack.enter_context(Sums(self._summed))
            yield

    def _before(self, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], torch.Tensor) and args[0].dim():
            self._kept.append(args[0])
            name = self._names[module]
            self.inputs[name] = args[0]
            self._readers.setdefault(tensor_key(args[0]), []).append(name)

    def _after(self, module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, torch.Tensor) and output.dim():
            self._kept.append(output)
            self._writers.setdefault(tensor_key(output), self._names[module])

    def _summed(self, output: torch.Tensor, _other: torch.Tensor) -> None:
        if (name := self._writers.get(tensor_key(output))) is not None:
            self._added.add(name)

    def sites(self, modules: Sequence[str], n_tokens: int = 0) -> list[FoundSite]:
        """`modules` by common input, in the order of the calls; one that was not called is a site of its own.

        The samples have `n_tokens` in all; only a site that has read so many is whole.

        Within a site they stay in the order given: that of the file, whose first tensor holds what they share.
        """
        sites = []
        for key, readers in self._readers.items():
            wanted = tuple(name for name in modules if name in readers)
            if wanted:
                shared = any(name not in wanted for name in readers)
                x = self.inputs[wanted[0]]
                whole = x.numel() == n_tokens * x.shape[-1]
                added = tuple(name for name in wanted if name in self._added)
                writer = self._writers.get(key, "")
                sites.append(FoundSite(wanted, writer, shared, is_whole=whole, added=added if whole else ()))
        return sites + [FoundSite((name,)) for name in modules if name not in self.inputs]


def tensor_key(tensor: torch.Tensor) -> _Key:
    """What tells tensors apart while all of them are kept."""
    # The version tells a tensor from what an operation in place has made of it.
    return tensor.data_ptr(), tensor.numel(), tensor.shape[-1], tensor._version
