"""The blocks of a model and how it calls them, found by structure: no class names of models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from spqfmt.calibration.model import NO_CALIBRATION, ModelShell, running_errors
from spqfmt.errors import UnsupportedError

LINEAR = (torch.nn.Linear, Conv1D)


class Stop(Exception):  # noqa: N818 - it ends a forward pass that has given what was wanted
    """Ends a forward pass as soon as what it was run for is known."""


@dataclass(frozen=True)
class Call:
    """All that a block is called with but the hidden states, which are the first argument or the keyword."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    keyword: str = ""

    def run(self, block: torch.nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """Compute the hidden states after the block. Raises UnsupportedError where it cannot be run."""
        with running_errors(block):
            if self.keyword:
                output = block(*self.args, **{**self.kwargs, self.keyword: hidden})
            else:
                output = block(hidden, *self.args, **self.kwargs)
        return _hidden_of(output)


@dataclass(frozen=True)
class Blocks:
    """The blocks in the order of their calls.

    `hidden` holds, batch by batch, the hidden states before the first one; `calls` [block][batch] how each is called.
    """

    names: tuple[str, ...]
    hidden: list[torch.Tensor]
    calls: tuple[tuple[Call, ...], ...]
    rest: tuple[Any, ...] | None = None
    """What a block returns behind the hidden states; None when it returns a tensor alone."""
    unquantized: list[torch.Tensor] | None = None
    """The hidden states of the unquantized model, where it is run beside the quantized one."""

    @contextmanager
    def ended_by(self, model: torch.nn.Module, hidden: torch.Tensor) -> Iterator[None]:
        """While the context lasts, every block gives `hidden`: the model computes what comes behind the last."""
        output = hidden if self.rest is None else (hidden, *self.rest)
        with ExitStack() as stack:
            for name in self.names:
                block: Any = model.get_submodule(name)
                block.forward = lambda *args, **kwargs: output
                stack.callback(delattr, block, "forward")
            yield


def find_lists(model: torch.nn.Module) -> dict[str, torch.nn.ModuleList]:
    """Module lists whose members all hold linear layers, but not those inside another one, by name."""
    found: dict[str, torch.nn.ModuleList] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if not isinstance(module, torch.nn.ModuleList) or not len(module) or inside:
            continue
        if all(any(isinstance(part, LINEAR) for part in member.modules()) for member in module):
            found[name] = module
    return found


def record_calls(shell: ModelShell, batches: list[torch.Tensor]) -> Blocks:
    """Run the model up to its first block on batches of token ids [samples, tokens], and note how it calls the others.

    Raises UnsupportedError when the model has no blocks with linear layers, does not call them one after another, or
    has weights in several of them.
    """
    lists = find_lists(shell.model)
    model_name = type(shell.model).__name__
    if not lists:
        raise _unsupported(f"{model_name} has no blocks with linear layers")
    hidden: list[torch.Tensor] = []
    per_batch: list[list[Call]] = []
    called = ""
    wrap: Any = None
    for ids in batches:
        recorder = _Recorder(shell, lists)
        with running_errors(shell.model), recorder.installed(), torch.no_grad(), suppress(Stop):
            shell.model.base_model(input_ids=ids.to(shell.device), use_cache=False)
        called, wrap = recorder.list_name, recorder.wrap
        if not recorder.calls or recorder.order != list(range(len(lists[called]))):
            raise _unsupported(f"{model_name} does not call blocks with linear layers one after another")
        hidden.append(recorder.first)
        per_batch.append(recorder.calls)
    names = tuple(f"{called}.{number}" for number in range(len(lists[called])))
    tied = next((name for name in shell.model.all_tied_weights_keys if name.startswith(f"{called}.")), None)
    if tied is not None:
        raise _unsupported(f"{model_name} has {tied} in common with another block")
    rest = None if isinstance(wrap, torch.Tensor) else tuple(wrap[1:])
    return Blocks(names, hidden, tuple(tuple(calls) for calls in zip(*per_batch, strict=True)), rest)


class _Recorder:
    """Stands in for the forward of every block: notes the call and hands the hidden states on as they are."""

    def __init__(self, shell: ModelShell, lists: dict[str, torch.nn.ModuleList]) -> None:
        self._shell = shell
        self._lists = lists
        self.wrap: Any = None
        self.calls: list[Call] = []
        self.order: list[int] = []
        self.list_name = ""
        self.first = torch.empty(0)

    @contextmanager
    def installed(self) -> Iterator[None]:
        with ExitStack() as stack:
            for name, members in self._lists.items():
                for number, member in enumerate(members):
                    # The instance's attribute hides the class's forward; what else its model asks of it stays.
                    member.forward = self._forward(name, number, member.forward)
                    stack.callback(delattr, member, "forward")
            yield

    def _forward(self, name: str, number: int, original: Any) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if not self.list_name:
                self.list_name = name
            if name != self.list_name:
                raise _unsupported(f"{name} runs before {self.list_name} is done")
            call, hidden = _split(args, kwargs)
            if not self.calls:
                # A block may read weights of layers that it does not call.
                self._shell.fill(self._shell.tensors_of(f"{name}.{number}"))
                self.first = hidden
                # What a block returns, a tensor or a tuple around one, is seen once on the first block itself.
                self.wrap = original(*args, **kwargs)
            self.calls.append(call)
            self.order.append(number)
            if number == len(self._lists[name]) - 1:
                raise Stop
            return hidden if isinstance(self.wrap, torch.Tensor) else (hidden, *self.wrap[1:])

        return forward


def _split(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Call, torch.Tensor]:
    if args and isinstance(args[0], torch.Tensor):
        return Call(args[1:], kwargs), args[0]
    for keyword, value in kwargs.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim() == 3:
            return Call(args, {k: v for k, v in kwargs.items() if k != keyword}, keyword), value
    raise _unsupported("a block is called without hidden states")


def _unsupported(what: str) -> UnsupportedError:
    return UnsupportedError(f"calibration: {what}; {NO_CALIBRATION}", "blocks")


def _hidden_of(output: Any) -> torch.Tensor:
    hidden = output if isinstance(output, torch.Tensor) else output[0]
    assert isinstance(hidden, torch.Tensor)
    return hidden
