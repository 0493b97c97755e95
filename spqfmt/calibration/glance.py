"""A look at a model's first block: what its layers read, how long it takes to run, and what it takes of memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from spqfmt.calibration.engine import Calibration
from spqfmt.calibration.text import CalibrationOptions
from spqfmt.importers.base import SourceModel
from spqfmt.quantize.base import MethodOptions, Weight
from spqfmt.quantize.calibrated import Block, LookingMethod, Result
from spqfmt.quantize.costs import least_seconds


@dataclass(frozen=True)
class Glance:
    """The first block as it was seen. `sites` are columns of each input, and rows of the layers that read it."""

    sites: tuple[tuple[int, tuple[int, ...]], ...]
    sample_tokens: int
    token_seconds: float
    """What the block takes for a token, in a run of one sample."""
    block_bytes: int
    outside_bytes: int
    """What is in memory of the model outside its blocks."""
    token_bytes: int
    """The hidden state of a token."""

    @property
    def n_weights(self) -> int:
        """Weights of the block's layers."""
        return sum(columns * sum(rows) for columns, rows in self.sites)


def glance(source: SourceModel, options: CalibrationOptions, wanted: Mapping[str, Weight]) -> Glance:
    """Run the first block on one sample. `wanted` are the tensors that are to be quantized.

    Raises what Calibration raises: a model that cannot be run, or a text.
    """
    looking = _Looking()
    engine = Calibration(
        source=source,
        method=looking,
        method_options=MethodOptions(),
        options=replace(options, samples=1, sequential=False),
        wanted=wanted,
    )
    n_tokens = engine.samples.shape[1]
    with source.unchanged():
        next(engine.run(), None)
    [hidden] = engine.blocks.hidden
    inside = {
        id(p) for name in engine.block_names for p in engine.shell.model.get_submodule(name).parameters()
    }
    return Glance(
        sites=tuple(looking.sites),
        sample_tokens=n_tokens,
        token_seconds=looking.seconds / n_tokens,
        block_bytes=looking.n_bytes,
        outside_bytes=sum(_n_bytes(p) for p in engine.shell.model.parameters() if id(p) not in inside),
        token_bytes=hidden.shape[-1] * hidden.element_size(),
    )


def _n_bytes(parameter: torch.nn.Parameter) -> int:
    return 0 if parameter.is_meta else parameter.numel() * parameter.element_size()


class _Looking(LookingMethod):
    """What a glance sees of a block."""

    def __init__(self) -> None:
        self.sites: list[tuple[int, tuple[int, ...]]] = []
        self.seconds = 0.0
        self.n_bytes = 0

    def accumulator(self, n_columns: int, options: MethodOptions) -> _Nothing:
        """Return what keeps nothing."""
        return _Nothing()

    def quantize_block(self, block: Block, options: MethodOptions) -> Mapping[str, Result]:
        """Look at the sites, and how long the block takes; nothing is changed."""
        for site in block.sites:
            shapes = [layer.matrix().shape for layer in site.layers]
            self.sites.append((shapes[0][1], tuple(shape[0] for shape in shapes)))
        self.seconds = least_seconds(block.run_first)
        self.n_bytes = sum(_n_bytes(p) for p in block.module.parameters())
        return {}


class _Nothing:
    def add(self, inputs: torch.Tensor) -> None:
        pass
