"""How many bits each tensor gets: steps that all follow one number, the *shift*, and the sizes expected.

`log2(step) = base + shift`. Between tensors the base is on the way from equal rate (each tensor gets the same bits a
weight, whatever errors on it cost) to equal slope (a bit more saves the same error everywhere), 0.7 of it: see
decision 0014. The shift is what a wanted size decides.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from spqfmt.quantize.ecq.grid import InputGrid
from spqfmt.quantize.ecq.moments import OutputMoments
from spqfmt.quantize.ecq.trellis import Trellis

EQUAL_SLOPE = 0.7
"""How far on the way from equal rate to equal slope."""
MOST_BITS = 8.0
"""Expected bits a weight beyond which no step is made finer: escapes would take over."""
MOST_PATH_BITS = 6.0
"""The same with a trellis, whose codes are twice as large."""
PATH_BITS = (2.0, 5.0)
"""Mean bits a weight for which a trellis is of use."""
FEWEST_BITS = 1.0
"""Mean bits a weight below which nothing of a model is left."""

STEPS = (-145.0, 120.0)
"""The least and the largest log2 of a step: what float32 holds, and room for the scales."""
_LEAST = 1e-4
"""Bits a weight of a tensor that is all 0: no curve reaches 0, so that each has an inverse."""


@dataclass(frozen=True)
class RateCurve:
    """Bits a weight that were measured at some steps: `points` of (log2 step, bits), steps ascending, bits falling."""

    points: tuple[tuple[float, float], ...]

    @classmethod
    def of(cls, measured: Sequence[tuple[float, float]]) -> "RateCurve":
        """Make a curve of points in any order; noise that would let bits rise with the step is flattened."""
        points = sorted(measured)
        bits = np.minimum.accumulate([max(b, _LEAST) for _, b in points]).tolist()
        return cls(tuple((s, b) for (s, _), b in zip(points, bits, strict=True)))

    def bits(self, log_step: float) -> float:
        """Interpolated; beyond the finest step it rises by 1 an octave, beyond the coarsest it falls by a half."""
        first, last = self.points[0], self.points[-1]
        if log_step <= first[0]:
            return first[1] + (first[0] - log_step)
        if log_step >= last[0]:
            return float(last[1] * 2.0 ** -(log_step - last[0]))
        steps, bits = zip(*self.points, strict=True)
        return float(np.interp(log_step, steps, bits))

    def log_step(self, bits: float) -> float:
        """The step at which so many bits are expected, above 0."""
        first, last = self.points[0], self.points[-1]
        if bits >= first[1]:
            return first[0] - (bits - first[1])
        if bits <= last[1]:
            return last[0] + float(np.log2(last[1] / bits))
        for (left, high), (right, low) in pairwise(self.points):
            if low <= bits <= high and low < high:
                return left + (right - left) * (high - bits) / (high - low)
        return last[0]


@dataclass(frozen=True)
class TensorPlan:
    """What is known of a tensor before it is quantized.

    `side_bytes`: scales. `gradients`: mean squares by output, float64 [rows], where they are known.
    """

    name: str
    n_weights: int
    base: float
    curve: RateCurve
    side_bytes: float
    gradients: NDArray[np.float64] | None = None
    moments: OutputMoments | None = None
    """How the loss sees the outputs together, where that is known."""
    trellis: Trellis | None = None
    grid: InputGrid | None = None
    """The grid of embedding and head, where what they do is known; `gradients` are then what errors of rows cost."""

    def log_step(self, shift: float) -> float:
        """The step's logarithm to base 2 at this shift, within what codes can express."""
        return max(
            self.base + shift, self.curve.log_step(MOST_BITS if self.trellis is None else MOST_PATH_BITS)
        )

    def step(self, shift: float) -> np.float32:
        """The step at this shift, within the range that a tensor may have."""
        return np.float32(2.0 ** float(np.clip(self.log_step(shift), *STEPS)))

    def n_bytes(self, shift: float) -> float:
        """The bytes that are expected, without tables and padding."""
        return self.n_weights * self.curve.bits(self.log_step(shift)) / 8 + self.side_bytes


def between(equal_rate: Sequence[float], equal_slope: Sequence[float], weights: Sequence[int]) -> list[float]:
    """Bases on the way between the two, whose origins are made to agree in the mean over weights."""
    if not equal_rate:
        return []
    rate, slope = np.array(equal_rate), np.array(equal_slope)
    slope = slope + np.average(rate - slope, weights=weights)
    mixed: list[float] = ((1 - EQUAL_SLOPE) * rate + EQUAL_SLOPE * slope).tolist()
    return mixed
