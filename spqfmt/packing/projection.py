"""How long a calibrated pack would take on this machine, and in how much memory, before it is begun.

The model's first block is run on one sample, and the method quantizes small matrices of noise. What that takes grows
with tokens, with rows * columns, with rows * columns^2 (feedback) and with columns^3 (factors of Hessians). Reading and
writing files is not in it, nor what a size makes the method try again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import NamedTuple

import torch

from spqfmt.calibration.engine import BATCH_TOKENS, Calibration
from spqfmt.importers.base import SourceModel
from spqfmt.packing.fit.survey import GRADIENT_SAMPLES
from spqfmt.packing.options import PackOptions
from spqfmt.packing.plan import PackPlan
from spqfmt.quantize.base import MethodOptions, Weight
from spqfmt.quantize.calibrated import (
    Block,
    CalibratedMethod,
    Layer,
    Result,
    SearchingMethod,
    Site,
    is_calibrated,
)
from spqfmt.quantize.ecq.survey import SURVEY_SAMPLES, Survey
from spqfmt.schemes.base import Quantized

_ROWS, _COLUMNS = (128, 512), (512, 1536)
"""Shapes of the noise that is quantized."""
_PROCESS_BYTES = 450 << 20
"""What a process with torch and transformers has before it packs anything."""
_FACTOR_BYTES = 40
"""Of a Hessian's element while it is factored, in float64."""
_LAYER_BYTES = 24
"""Of a weight of the matrix that is quantized."""


class Projection(NamedTuple):
    """Seconds of running the model's blocks and of quantizing, and the largest resident set of the process."""

    running_seconds: float
    quantizing_seconds: float
    peak_bytes: int

    @property
    def seconds(self) -> float:
        """All seconds together."""
        return self.running_seconds + self.quantizing_seconds


@dataclass(frozen=True)
class _Costs:
    """Seconds of a method by shape: of a weight, also by the columns that its row has, and of an input."""

    weight: float
    weight_column: float
    column: float
    factor: float
    """Of columns cubed."""

    def of(self, rows: int, columns: int) -> float:
        return rows * columns * (self.weight + self.weight_column * columns) + self.of_input(columns)

    def of_input(self, columns: int) -> float:
        return columns * (self.column + self.factor * columns**2)


@dataclass
class _Glance:
    """A calibrated method that sees the inputs of one block's layers, and how long the block takes."""

    name: str = "glance"
    takes: frozenset[str] = frozenset()
    calibrated: bool = True
    sites: list[tuple[int, list[int]]] = field(default_factory=list)
    """Columns of each input, and the rows of the layers that read it."""
    run_seconds: float = 0.0
    weight_bytes: int = 0

    def check(self, options: MethodOptions) -> MethodOptions:
        """Return the options as they are."""
        return options

    def describe(self, weight: Weight, options: MethodOptions) -> str:
        """Say that layers are looked at."""
        return "looked at" if weight.role == "linear" else ""

    def quantize(self, weight: Weight, value: torch.Tensor, options: MethodOptions) -> Quantized:
        """Raise TypeError: nothing is quantized."""
        raise TypeError(f"{weight.name}: nothing is quantized")

    def accumulator(self, n_columns: int, options: MethodOptions) -> _Nothing:
        """Return what keeps nothing."""
        return _Nothing()

    def quantize_block(self, block: Block, options: MethodOptions) -> Mapping[str, Result]:
        """Look at the sites; nothing is changed."""
        for site in block.sites:
            shapes = [layer.matrix().shape for layer in site.layers]
            self.sites.append((shapes[0][1], [shape[0] for shape in shapes]))
        self.run_seconds = _least(block.run_first)
        self.weight_bytes = sum(p.numel() * p.element_size() for p in block.module.parameters())
        return {}


class _Nothing:
    def add(self, inputs: torch.Tensor) -> None:
        pass


def project(model: SourceModel, plan: PackPlan, options: PackOptions) -> Projection | None:
    """What the pack would take; None where the method needs no calibration, or searches on the model.

    Takes some seconds. Raises what a calibration raises: a model that cannot be run is refused here already.
    """
    method, calibration = options.method, options.calibration
    if not is_calibrated(method) or isinstance(method, SearchingMethod):
        return None
    tensors = {
        t.source.name: t
        for t in plan.tensors
        if t.treatment and t.source.tied_to is None and t.source.role != "other"
    }
    wanted = {name: t.weight for name, t in tensors.items() if t.source.role == "linear"}
    glance = _Glance()
    engine = Calibration(
        source=model,
        method=glance,
        method_options=options.method_options,
        options=replace(calibration, samples=1, sequential=False),
        wanted=wanted,
    )
    with model.unchanged():
        next(engine.run(), None)
    seen = sum(columns * sum(rows) for columns, rows in glance.sites)
    if not seen:
        return None
    n_blocks = sum(prod(weight.shape) for weight in wanted.values()) / seen
    n_tokens, length = calibration.samples * engine.samples.shape[1], engine.samples.shape[1]
    passes = [(n_tokens, method)]
    n_runs = 2.0 * n_tokens
    corrected = calibration.sequential and getattr(method, "corrects", False)
    if corrected:
        # Each input is looked at in both versions of the block, as far as it has to be run for that.
        n_runs = n_tokens * (2 + 2 * sum((k + 1) / len(glance.sites) for k in range(len(glance.sites))))
    if options.fit is not None:
        few = min(SURVEY_SAMPLES, calibration.samples) * length
        n_runs += 2 * few
        passes.append((few, Survey(4.0, {})))
        if options.method_options.gradients:
            n_runs += 4 * min(GRADIENT_SAMPLES, calibration.samples) * length
    gathering = _accumulating(method, options.method_options)
    quantizing = 0.0
    for tokens, one in passes:
        costs = _costs(one, options.method_options)
        for columns, rows in glance.sites:
            n_runs_of_sums = 3 if corrected and one is method else 1
            quantizing += n_blocks * n_runs_of_sums * gathering(columns) * tokens
            quantizing += n_blocks * costs.of(sum(rows), columns)
        if options.fit is not None:
            quantizing += sum(
                costs.of(*t.source.shape) for t in tensors.values() if t.source.role != "linear"
            )
    return Projection(
        running_seconds=n_blocks * glance.run_seconds / length * n_runs,
        quantizing_seconds=quantizing,
        peak_bytes=_peak_bytes(glance, engine, n_tokens, corrected=corrected),
    )


def _costs(method: CalibratedMethod, options: MethodOptions) -> _Costs:
    """Measured on noise."""
    by_weight, by_column = [], []
    for columns in _COLUMNS:
        fewer, more = (_quantizing(method, options, rows, columns) for rows in _ROWS)
        row = max(0.0, more - fewer) / (_ROWS[1] - _ROWS[0])
        by_weight.append(row / columns)
        by_column.append(max(0.0, fewer - _ROWS[0] * row) / columns)
    weight, weight_column = _line(by_weight, 1)
    column, factor = _line(by_column, 2)
    return _Costs(weight, weight_column, column, factor)


def _line(found: Sequence[float], power: int) -> tuple[float, float]:
    """Start and slope, both at least 0, of what was found for each of _COLUMNS to this power."""
    few, many = (columns**power for columns in _COLUMNS)
    slope = max(0.0, (found[1] - found[0]) / (many - few))
    return max(0.0, found[1] - slope * many), slope


def _quantizing(method: CalibratedMethod, options: MethodOptions, rows: int, columns: int) -> float:
    """Seconds for one matrix of noise."""
    generator = torch.Generator().manual_seed(0)
    statistics = method.accumulator(columns, options)
    statistics.add(torch.randn(1, 2 * columns, columns, generator=generator))
    matrix = torch.randn(rows, columns, generator=generator)
    weight = Weight("layer.weight", (rows, columns), "bf16", "linear")
    site = Site((Layer(weight, "layer", matrix.clone),), statistics, lambda: iter(()))
    block = Block("block", (site,), torch.nn.Linear(1, 1), {}, run_first=lambda: matrix)
    return _least(lambda: method.quantize_block(block, options))


def _accumulating(method: CalibratedMethod, options: MethodOptions) -> Callable[[int], float]:
    """Seconds in which a method takes in a token of an input with so many columns."""
    n_tokens = BATCH_TOKENS // 4
    seconds = []
    for columns in _COLUMNS:
        statistics, inputs = method.accumulator(columns, options), torch.randn(1, n_tokens, columns)
        seconds.append(_least(lambda s=statistics, x=inputs: s.add(x)) / n_tokens / columns)  # type: ignore[misc]
    start, slope = _line(seconds, 1)
    return lambda columns: columns * (start + slope * columns)


def _least(call: Callable[[], object]) -> float:
    """Seconds of the quickest of three calls."""
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _peak_bytes(glance: _Glance, engine: Calibration, n_tokens: int, *, corrected: bool) -> int:
    """One block, what is known of its inputs, the hidden states, and the largest matrix while it is quantized."""
    [hidden] = engine.blocks.hidden
    states: int = n_tokens * hidden.shape[-1] * hidden.element_size()
    outside = sum(
        p.numel() * p.element_size() for p in engine.shell.model.parameters() if p.device.type != "meta"
    )
    squares = [columns**2 for columns, _ in glance.sites]
    weights = [columns * rows for columns, each in glance.sites for rows in each]
    of_inputs = (24 if corrected else 16) * sum(squares)
    at_once = max(_FACTOR_BYTES * max(squares), _LAYER_BYTES * max(weights))
    block = glance.weight_bytes * (2 if corrected else 1) + 5 * sum(weights)
    total: int = _PROCESS_BYTES + outside + block + of_inputs + at_once + states * (2 if corrected else 1)
    return total
