"""One block without and with quantization, side by side, site after site in the order in which it computes.

A site's statistics are of the inputs that the quantized layers before it give, in this block too. How these differ from
the unquantized model's is summed up beside them. Nothing is kept of the unquantized model but its hidden states before
the block and the block's weights: each site runs both versions as far as it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch

from spqfmt.calibration.blocks import Blocks, Stop
from spqfmt.calibration.runs import BlockRun, Counter
from spqfmt.calibration.sites import FoundSite, Sums, tensor_key
from spqfmt.quantize.drift import Drift


class Pair:
    """A block whose parameters may be overwritten, beside what they were; `before` are its own hidden states."""

    def __init__(self, run: BlockRun, before: BlockRun, parameters: Iterable[str]) -> None:
        self._run = run
        self._before = before
        self._weights = {name: run.block.get_parameter(name).data for name in set(parameters)}
        for name, weight in self._weights.items():
            run.block.get_parameter(name).data = weight.clone()

    @contextmanager
    def unquantized(self) -> Iterator[None]:
        """While the context lasts, the block has the weights that it had at first."""
        parameters = {name: self._run.block.get_parameter(name) for name in self._weights}
        changed = {name: parameter.data for name, parameter in parameters.items()}
        try:
            for name, parameter in parameters.items():
                parameter.data = self._weights[name]
            yield
        finally:
            for name, parameter in parameters.items():
                parameter.data = changed[name]

    def advance(self) -> None:
        """Replace the hidden states of the unquantized model by those after the block."""
        with self.unquantized():
            self._before.advance()

    def gather(self, sites: Sequence[FoundSite], counters: Sequence[Counter]) -> list[Drift | None]:
        """Run all batches for the sites of one stage; the drift of each, None where tokens cannot be compared."""
        if [site.is_whole for site in sites] != [True]:
            self._run.gather({site.input_name: c.add for site, c in zip(sites, counters, strict=True)})
            return [None] * len(sites)
        [site], [counter], drift = sites, counters, Drift()
        for number in range(self._run.n_batches):
            self._run.tell(f"inputs of {site.input_name} {number + 1}/{self._run.n_batches}")
            with self.unquantized():
                before, added_before = _seen(self._before, number, site)
            after, added_after = _seen(self._run, number, site)
            counter.add(after)
            drift.add(before, after)
            for module in added_before.keys() & added_after.keys():
                drift.add_sum(module, added_before[module], added_after[module], inputs=after)
        return [drift]


def stages(found: Sequence[FoundSite]) -> list[list[FoundSite]]:
    """Sites to be quantized one after the other; those that see only some tokens (experts) come last, at once."""
    whole = [[site] for site in found if site.is_whole]
    others = [site for site in found if not site.is_whole]
    return [*whole, others] if others else whole


def pair_of(run: BlockRun, blocks: Blocks, number: int, parameters: Iterable[str]) -> Pair | None:
    """The block with its unquantized self; None where the calibration has no hidden states of that."""
    if blocks.unquantized is None:
        return None
    return Pair(run, run.on(blocks.calls[number], blocks.unquantized), parameters)


def _seen(run: BlockRun, number: int, site: FoundSite) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The site's input for one batch, and what the outputs of its modules are added to; nothing after is computed."""
    inputs: list[torch.Tensor] = []
    outputs: dict[Any, str] = {}
    kept: list[torch.Tensor] = []
    added: dict[str, torch.Tensor] = {}

    def take(x: torch.Tensor) -> None:
        inputs.append(x)
        if not site.added:
            raise Stop

    def take_sum(output: torch.Tensor, other: torch.Tensor) -> None:
        module = outputs.get(tensor_key(output))
        if module is not None:
            added.setdefault(module, other.clone())
            if len(added) == len(site.added):
                raise Stop

    def keep(module: str) -> Callable[[object, object, torch.Tensor], None]:
        def hook(_: object, __: object, output: torch.Tensor) -> None:
            # Kept, so that no other tensor comes to lie in its place.
            kept.append(output)
            outputs[tensor_key(output)] = module

        return hook

    with ExitStack() as hooks, suppress(Stop):
        run.install({site.input_name: take}, hooks)
        for module in site.added:
            hooks.callback(run.block.get_submodule(module).register_forward_hook(keep(module)).remove)
        if site.added:
            hooks.enter_context(Sums(take_sum))
        run.batch(number)
    return inputs[0], added
