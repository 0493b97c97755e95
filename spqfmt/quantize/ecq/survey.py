"""What must be known of all tensors before the first is quantized: how each one's rate falls with its step.

A few rows of every tensor are quantized at a few steps, as the whole will be before its codes are made better. The
calibrated part is itself a method that leaves everything as it is, so that the engine shows it every block of the float
model on a few samples.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from spqfmt.quantize.base import MethodOptions
from spqfmt.quantize.calibrated import Block, LookingMethod, Result
from spqfmt.quantize.ecq.allocation import STEPS, RateCurve, TensorPlan, between
from spqfmt.quantize.ecq.coding import APART, PATH_ERROR
from spqfmt.quantize.ecq.grid import (
    DAMPING,
    InputGrid,
    input_grid,
    mean_log_rms,
    plain_grid,
)
from spqfmt.quantize.ecq.moments import OutputMoments
from spqfmt.quantize.ecq.sweep import RowGrid, choose
from spqfmt.quantize.ecq.trellis import Trellis
from spqfmt.quantize.statistics import Hessian
from spqfmt.schemes.codes import Layout

SURVEY_SAMPLES = 16
"""Samples of the calibration that the survey looks at."""
_SAMPLED_ROWS = 64
_SAMPLED_WEIGHTS = 1 << 16
"""At least so many weights, or rows, are looked at."""
_OFFSETS = (-2.5, -1.0, 0.0, 1.0, 2.5)
"""Octaves around the step of the wanted rate at which rates are measured."""
GAUSSIAN_BITS = 0.5 * math.log2(2 * math.pi * math.e)
"""Entropy of a normal variable in bits, over the log2 of its deviation."""


@dataclass(frozen=True)
class Surveyed:
    """What the survey saw of a tensor. `equal_rate` and `equal_slope` are log2 steps, the latter up to a constant."""

    name: str
    n_weights: int
    curve: RateCurve
    side_bytes: float
    equal_rate: float
    equal_slope: float | None
    gradients: NDArray[np.float64] | None = None
    moments: OutputMoments | None = None
    trellis: Trellis | None = None
    grid: InputGrid | None = None
    """The grid of embedding and head, where it is known what they do, kept until they are quantized."""


class Survey(LookingMethod):
    """Look at every layer. By tensor name `gradients`, mean squares of the outputs [rows], `moments` where known."""

    def __init__(self, rate: float, gradients: Mapping[str, torch.Tensor]) -> None:
        """`rate`: about how many bits a weight will have."""
        self.rate, self.gradients = rate, gradients
        self.moments: Mapping[str, OutputMoments] = {}
        self.seen: dict[str, Surveyed] = {}

    def accumulator(self, n_columns: int, options: MethodOptions) -> Hessian:
        """Return what sums up the Hessian of the inputs."""
        return Hessian(n_columns)

    def quantize_block(self, block: Block, options: MethodOptions) -> Mapping[str, Result]:
        """Look at every layer; nothing is changed."""
        for site in block.sites:
            assert isinstance(site.statistics, Hessian)
            damping = DAMPING if options.damping is None else options.damping
            grid = input_grid(site.statistics.take(), damping, site.statistics.exponent)
            for layer in site.layers:
                gradients = self.gradients.get(layer.weight.name)
                squares = None if gradients is None else gradients.numpy()
                found = survey_layer(
                    layer.weight.name,
                    layer.matrix(),
                    grid,
                    rate=self.rate,
                    gradients=squares,
                    n_sharing=len(site.layers),
                    trellis=Trellis.of(layer.weight, options),
                )
                self.seen[layer.weight.name] = replace(found, moments=self.moments.get(layer.weight.name))
        return {}


def survey_layer(
    name: str,
    matrix: torch.Tensor,
    grid: InputGrid,
    rate: float,
    gradients: NDArray[np.float64] | None,
    n_sharing: int,
    trellis: Trellis | None = None,
) -> Surveyed:
    """A layer, float32 [out, in]. `n_sharing` tensors share its column scales."""
    rows = RowGrid.of_layer(matrix, gradients)
    known = None if rows.scale is None else gradients
    return _surveyed(name, matrix, grid, rows, rate=rate, costs=known, n_sharing=n_sharing, trellis=trellis)


def survey_end(
    name: str,
    matrix: torch.Tensor,
    grid: InputGrid,
    rate: float,
    costs: NDArray[np.float64],
    *,
    are_weighed: bool,
    trellis: Trellis | None = None,
) -> Surveyed:
    """Embedding or head, float32 [rows, columns], of whose rows it is known what errors cost, float64 [rows].

    `are_weighed`: whether these costs can be held against those of layers.
    """
    found = _surveyed(
        name, matrix, grid, RowGrid.of_end(matrix, costs), rate=rate, costs=costs, trellis=trellis
    )
    return replace(found, equal_slope=found.equal_slope if are_weighed else None, grid=grid)


def survey_plain(name: str, matrix: torch.Tensor, rate: float, trellis: Trellis | None = None) -> Surveyed:
    """A tensor of whose input nothing is known, float32 [rows, columns]: rows with a scale of their own."""
    return _surveyed(
        name,
        matrix,
        plain_grid(matrix.shape[1]),
        RowGrid.of_norms(matrix),
        rate=rate,
        costs=None,
        trellis=trellis,
    )


def _surveyed(
    name: str,
    matrix: torch.Tensor,
    grid: InputGrid,
    rows: RowGrid,
    *,
    rate: float,
    costs: NDArray[np.float64] | None,
    n_sharing: int = 1,
    trellis: Trellis | None = None,
) -> Surveyed:
    curve, equal_rate = _measure(matrix, grid, rows, rate=rate, trellis=trellis)
    columns = 0 if grid.column_scale is None else matrix.shape[1] / n_sharing
    return Surveyed(
        name=name,
        n_weights=matrix.numel(),
        curve=curve,
        side_bytes=columns + (0 if rows.scale is None else rows.scale.values.nbytes),
        equal_rate=equal_rate,
        equal_slope=_equal_slope(grid, rows, costs, trellis),
        gradients=costs,
        trellis=trellis,
    )


def _equal_slope(
    grid: InputGrid, rows: RowGrid, gradients: NDArray[np.float64] | None, trellis: Trellis | None
) -> float | None:
    """The log2 step, up to a constant, at which a bit saves what it saves elsewhere.

    Only gradients can tell: an error of a layer's outputs says nothing of what it does to the model. Without them
    equal slope of output errors was far worse than equal rate (decision 0014).
    """
    if gradients is None or rows.scale is None:
        return None
    step = rows.scale.to_float32().astype(np.float64)
    error = 1.0 if trellis is None else PATH_ERROR
    return -0.5 * math.log2(error * grid.error_factor * float((gradients * step**2).mean())) - grid.exponent


def make_plans(seen: Sequence[Surveyed], extra_bits: Mapping[str, float]) -> dict[str, TensorPlan]:
    """Make the bases of all tensors. `extra_bits` are those that a tensor gets over the mean of the layers, by name.

    A tensor whose errors cannot be weighed stands at equal rate, and only such a one gets extra bits.
    """
    weighed = [s for s in seen if s.equal_slope is not None and s.grid is None]
    slopes = [s.equal_slope for s in weighed if s.equal_slope is not None]
    rates, weights = [s.equal_rate for s in weighed], [s.n_weights for s in weighed]
    bases = between(rates, slopes, weights)
    by_name = {s.name: base for s, base in zip(weighed, bases, strict=True)}
    if weighed:
        # Embedding and head are so unlike layers that equal rate means nothing for them.
        origin = float(np.average(np.subtract(rates, slopes), weights=weights))
        by_name |= {
            s.name: origin + s.equal_slope for s in seen if s.grid is not None and s.equal_slope is not None
        }
    return {
        s.name: TensorPlan(
            name=s.name,
            n_weights=s.n_weights,
            base=by_name[s.name] if s.name in by_name else s.equal_rate - extra_bits.get(s.name, 0.0),
            curve=s.curve,
            side_bytes=s.side_bytes,
            gradients=s.gradients,
            moments=s.moments,
            trellis=s.trellis,
            grid=s.grid,
        )
        for s in seen
    }


def _measure(
    matrix: torch.Tensor, grid: InputGrid, rows: RowGrid, rate: float, trellis: Trellis | None
) -> tuple[RateCurve, float]:
    """The curve of some rows, and the log2 step at which they take `rate` bits a weight."""
    picked = _picked(*matrix.shape)
    part, part_rows = matrix[torch.from_numpy(picked)], rows.picked(picked)
    scaled = (
        part / torch.from_numpy(part_rows.step(len(picked)))[:, None] / torch.from_numpy(grid.column_step)
    )
    around = mean_log_rms(scaled) + GAUSSIAN_BITS - rate
    coding = APART
    if trellis is not None:
        # What is stored is on a grid of twice the step.
        around -= 1
        coding = replace(trellis, stacked_rows=len(picked)).coding(len(picked), Layout())
    points = []
    for offset in _OFFSETS:
        log_step = float(np.clip(around + offset, *STEPS))
        chosen = choose(part, grid, part_rows, np.float32(2.0**log_step), coding=coding)
        points.append((log_step, chosen.bits / part.numel()))
    curve = RateCurve.of(points)
    return curve, curve.log_step(rate)


def _picked(n_rows: int, n_columns: int) -> NDArray[np.int64]:
    """Rows evenly spaced over the matrix."""
    n = min(n_rows, max(_SAMPLED_ROWS, _SAMPLED_WEIGHTS // n_columns))
    return np.unique(np.linspace(0, n_rows - 1, n).round().astype(np.int64))
