"""Which layers of a block read the same input, and where that input comes from; seen by running the block once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

_Key: TypeAlias = tuple[int, int, int, int]


@dataclass(frozen=True)
class FoundSite:
    """Modules that read one input, by name inside the block; `producer` and `shared` as in quantize.calibrated.Site."""

    modules: tuple[str, ...]
    producer: str = ""
    shared: bool = False
    merged: str = ""
    """The slice of merged experts (experts.py) that reads the input; empty where it is modules that do."""

    @property
    def input_name(self) -> str:
        """The name that BlockRun knows the input by."""
        return self.merged or self.modules[0]


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

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Watch the block's modules while the context lasts."""
        with ExitStack() as stack:
            for module in self._leaves:
                stack.callback(module.register_forward_pre_hook(self._before).remove)
                stack.callback(module.register_forward_hook(self._after).remove)
            yield

    def _before(self, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], torch.Tensor) and args[0].dim():
            self._kept.append(args[0])
            name = self._names[module]
            self.inputs[name] = args[0]
            self._readers.setdefault(_key(args[0]), []).append(name)

    def _after(self, module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, torch.Tensor) and output.dim():
            self._kept.append(output)
            self._writers.setdefault(_key(output), self._names[module])

    def sites(self, modules: Sequence[str]) -> list[FoundSite]:
        """`modules` by common input, in the order of the calls; one that was not called is a site of its own.

        Within a site they stay in the order given: that of the file, whose first tensor holds what they share.
        """
        sites = []
        for key, readers in self._readers.items():
            wanted = tuple(name for name in modules if name in readers)
            if wanted:
                shared = any(name not in wanted for name in readers)
                sites.append(FoundSite(wanted, self._writers.get(key, ""), shared))
        return sites + [FoundSite((name,)) for name in modules if name not in self.inputs]


def _key(tensor: torch.Tensor) -> _Key:
    # The version tells a tensor from what an operation in place has made of it.
    return tensor.data_ptr(), tensor.numel(), tensor.shape[-1], tensor._version
