"""Compresses the model again and again on a few samples, for a method that searches for its options."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from spqfmt.calibration.blocks import record_calls
from spqfmt.quantize.base import MethodOptions

if TYPE_CHECKING:
    from spqfmt.calibration.engine import Calibration


class EngineTrials:
    """`spqfmt.quantize.calibrated.Trials`, run by the engine.

    Memory holds the samples' hidden states before every block, for what was accepted last and for what is tried.
    """

    def __init__(self, engine: Calibration) -> None:
        self._engine = engine
        self.choose(1)

    def choose(self, n_samples: int) -> None:
        """Use the first so many samples."""
        self._ids = self._engine.samples[:n_samples]
        self._blocks = record_calls(self._engine.shell, [self._ids])
        self._accepted = list(self._blocks.hidden)
        self._tried = self._accepted

    @property
    def sites(self) -> tuple[tuple[int, str], ...]:
        """Block and first tensor of every input."""
        blocks = self._engine.block_names
        return tuple((n, site) for n, name in enumerate(blocks) for site in self._engine.sites.get(name, ()))

    def perplexity(self, options: MethodOptions, first_block: int = 0) -> float:
        """The perplexity of the model compressed with `options`; before `first_block` it is as accepted last."""
        engine = self._engine
        hidden = self._accepted[: first_block + 1]
        for number in range(first_block, len(engine.block_names)):
            blocks = replace(self._blocks, hidden=[hidden[number]])
            engine.step(blocks, number, options)
            hidden.append(blocks.hidden[0])
        self._tried = hidden
        return self._score(hidden[-1])

    def _score(self, hidden: torch.Tensor) -> float:
        total = 0.0
        model = self._engine.shell.model
        for ids, states in zip(torch.split(self._ids, 1), torch.split(hidden, 1), strict=True):
            targets = ids.to(hidden.device)[0, 1:]
            with torch.no_grad(), self._blocks.ended_by(model, states):
                logits = model(input_ids=ids.to(hidden.device), use_cache=False).logits[0, :-1]
            total += float(torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum"))
        mean = total / (self._ids.numel() - self._ids.shape[0])
        return math.exp(mean) if mean < math.log(torch.finfo(torch.float64).max) else math.inf

    def accept(self) -> None:
        """What was tried last is what the next trial starts from."""
        self._accepted = self._tried

    def stage(self, text: str) -> None:
        """Tell the user what goes on."""
        self._engine.stage(text)
