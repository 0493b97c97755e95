"""Running one block: what its layers read, and what comes out when their inputs are treated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from typing import Any

import torch

from spqfmt.calibration.blocks import Call, Stop
from spqfmt.calibration.experts import ExpertRows, ExpertStack, Taker, seen_inputs
from spqfmt.models.treatments import Treatment
from spqfmt.quantize.calibrated import Accumulator


class BlockRun:
    """One block and what goes into it: `hidden` are the hidden states before it, batch by batch."""

    def __init__(
        self,
        name: str,
        block: torch.nn.Module,
        calls: tuple[Call, ...],
        hidden: list[torch.Tensor],
        stage: Callable[[str], None],
        parts: Mapping[str, ExpertRows | ExpertStack],
    ) -> None:
        self.name = name
        self.block = block
        self.parts = parts
        """Tensors that lie in merged experts, by name."""
        self._calls = calls
        self._hidden = hidden
        self._stage = stage

    def on(self, calls: tuple[Call, ...], hidden: list[torch.Tensor]) -> BlockRun:
        """The same block with other hidden states."""
        return BlockRun(
            name=self.name, block=self.block, calls=calls, hidden=hidden, stage=self._stage, parts=self.parts
        )

    @property
    def n_batches(self) -> int:
        """How many batches the samples are run in."""
        return len(self._hidden)

    @property
    def batch_tokens(self) -> int:
        """Tokens of the first batch."""
        first = self._hidden[0]
        return first.numel() // first.shape[-1]

    def tell(self, text: str) -> None:
        """Say what goes on in the block."""
        self._stage(f"{self.name}: {text}")

    def batch(self, number: int) -> torch.Tensor:
        """Hidden states after the block for one batch."""
        return self._calls[number].run(self.block, self._hidden[number])

    def gather(self, takers: Mapping[str, Taker]) -> None:
        """Run all batches; each module's input, or that of a slice of merged experts, goes to its taker."""
        with ExitStack() as hooks:
            self.install(takers, hooks)
            for number in range(len(self._hidden)):
                self._stage(f"{self.name}: inputs {number + 1}/{len(self._hidden)}")
                self.batch(number)

    def inputs(self, module: str) -> Iterator[torch.Tensor]:
        """Run again and yield one input batch by batch, as `gather` names it; nothing after it is computed."""
        for number in range(len(self._hidden)):
            taken: list[torch.Tensor] = []

            def take(x: torch.Tensor, taken: list[torch.Tensor] = taken) -> None:
                taken.append(x)
                # Slices of a stack are multiplied one after the other.
                if not module.endswith("[:]"):
                    raise Stop

            with ExitStack() as hooks, suppress(Stop), torch.no_grad():
                self.install({module: take}, hooks)
                self.batch(number)
            yield from taken

    def install(self, takers: Mapping[str, Taker], hooks: ExitStack) -> None:
        """Let inputs, as `gather` names them, go to their takers until `hooks` is closed."""
        merged = {name: take for name, take in takers.items() if name.endswith("]")}
        for name in takers.keys() - merged.keys():
            hook = self.block.get_submodule(name).register_forward_pre_hook(_taking(takers[name]))
            hooks.callback(hook.remove)
        hooks.enter_context(seen_inputs(self.block, merged))

    def advance(self) -> None:
        """Replace the hidden states by those after the block."""
        for number in range(len(self._hidden)):
            self._stage(f"{self.name}: outputs {number + 1}/{len(self._hidden)}")
            self._hidden[number] = self.batch(number)


class Counter:
    """Hands inputs to an accumulator and counts their tokens."""

    def __init__(self, accumulator: Accumulator) -> None:
        self.accumulator = accumulator
        self.n_tokens = 0

    def add(self, inputs: torch.Tensor) -> None:
        """Take more inputs in, [..., columns]."""
        self.n_tokens += inputs.numel() // inputs.shape[-1]
        self.accumulator.add(inputs)


def treat_inputs(
    block: torch.nn.Module, modules: Iterator[str] | tuple[str, ...], treat: Treatment, hooks: ExitStack
) -> None:
    """Treat what these modules read until `hooks` is closed; an input that several of them read, once."""
    once = _Once(treat)
    for module in modules:
        hook = block.get_submodule(module).register_forward_pre_hook(
            lambda _, args: (once(args[0]), *args[1:])
        )
        hooks.callback(hook.remove)


class _Once:
    """A treatment that is not computed again for the tensor that it has seen last."""

    def __init__(self, treat: Treatment) -> None:
        self._treat = treat
        self._last: tuple[torch.Tensor, torch.Tensor] | None = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self._last is None or self._last[0] is not x:
            self._last = x, self._treat(x)
        return self._last[1]


def _taking(take: Taker) -> Callable[[torch.nn.Module, tuple[Any, ...]], None]:
    def hook(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        take(args[0])

    return hook
