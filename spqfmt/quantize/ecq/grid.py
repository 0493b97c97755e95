"""The grid of an ecq tensor: how its step varies over columns and rows, and what an error on it costs.

The theory of coding at high rate wants the step of column j proportional to 1 / rms(X_j) and that of row i to 1 / g_i,
g_i the root mean square gradient of output i: then every weight's error costs the same. Both exponents are less here,
for reasons that decision 0014 gives with figures.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from spqfmt.quantize.feedback import Factor, factorize
from spqfmt.schemes.base import Float32
from spqfmt.schemes.floats import Scale, to_log8

COLUMN_EXPONENT = 0.5
COLUMN_OCTAVE_STEPS = 16
ROW_EXPONENT = 0.8
END_EXPONENT = 0.5
"""The same for rows of embedding and head: what errors of rare tokens cost is known worst."""
ROW_OCTAVE_STEPS = 8
DAMPING = 0.1
"""In means of the Hessian's diagonal. More than gptq's: no range is at stake, the step follows from the rate."""

_QUIETEST_COLUMN = 1e-3
"""A share of the loudest rms: columns below it get no larger step; a column that is always 0 gets this one."""
_QUIETEST_ROW = 1e-2
"""A share of the mean square gradient, with the same meaning for rows."""
_QUIETEST_NORM = 2.0**-24
"""A share of the loudest row's rms: what a scale of 8 bits can tell apart. Where one is quieter, scales are float32."""
_UNEVEN = 2.0**16
"""A multiple of the median row's rms, or its inverse: a row beyond has no code but 0, or outliers alone, at any step
that others can have."""
_PROCESSOR = torch.device("cpu")
_RMS_OF_ZEROS = 2.0**-100
"""In place of the rms of weights that are all 0."""


@dataclass(frozen=True)
class InputGrid:
    """What layers with one input share. `upper` float32 [columns, columns] is U in the order of `order`.

    `column_step` are the column scales as a reader restores them, float32 [columns] in the matrix's own order.
    `error_factor` is the error, summed over what one row's columns cause, of a step of 1: mean of
    (column_step / U_jj)^2, by which rates and errors are weighed against each other. Both are of inputs times
    2^-exponent.
    """

    column_scale: Scale | None
    column_step: Float32
    order: np.ndarray[tuple[int], np.dtype[np.int64]]
    upper: Float32
    error_factor: float
    note: str = ""
    exponent: int = 0
    hessian: Float32 | None = None
    """The damped Hessian in the order of `order`, where codes are made better after the feedback."""
    sweeps: int = 0
    """How often codes are made better."""
    device: torch.device = _PROCESSOR
    """Where products with `upper` and `hessian` are made."""


def input_grid(hessian: torch.Tensor, damping: float, exponent: int = 0, *, sweeps: int = 0) -> InputGrid:
    """Make the grid of a Hessian, 2/N X^T X of inputs times 2^-exponent, float32 [columns, columns], on any device.

    `sweeps`: how often codes on it shall be made better after the feedback.
    """
    # Damped as it is, half of the time and of the memory are as good: decision 0063.
    factor = factorize(hessian, damping, act_order=True, dtype=torch.float32).here()
    rms = (hessian.diagonal().double() / 2).sqrt().cpu().numpy()
    if not np.isfinite(rms).all() or rms.max() <= 0:
        return plain_grid(len(rms), factor.note)
    scale = _log8(np.maximum(rms, rms.max() * _QUIETEST_COLUMN) ** -COLUMN_EXPONENT, COLUMN_OCTAVE_STEPS)
    step = scale.to_float32()
    order = _order(factor, len(rms))
    upper = np.ascontiguousarray(factor.upper.numpy())
    shares = (step[order].astype(np.float64) / upper.diagonal()) ** 2
    return InputGrid(
        column_scale=scale,
        column_step=step,
        order=order,
        upper=upper,
        error_factor=float(shares.mean()),
        note=factor.note,
        exponent=exponent,
        hessian=_damped(hessian, order, damping) if sweeps and not factor.note else None,
        sweeps=sweeps,
        device=hessian.device,
    )


def _damped(hessian: torch.Tensor, order: NDArray[np.int64], damping: float) -> Float32:
    columns = torch.from_numpy(order).to(hessian.device)
    damped = hessian[columns][:, columns]
    damped.diagonal().add_(damping * float(hessian.diagonal().double().mean()))
    result: Float32 = np.ascontiguousarray(damped.cpu().numpy())
    return result


def plain_grid(n_columns: int, note: str = "") -> InputGrid:
    """Make the grid without knowledge of the input: all columns alike, and no feedback."""
    unit = np.ones(n_columns, np.float32)
    return InputGrid(
        column_scale=None,
        column_step=unit,
        order=np.arange(n_columns),
        upper=np.empty((0, 0), np.float32),
        error_factor=1.0,
        note=note,
    )


def gradient_scale(squares: NDArray[np.float64], exponent: float = ROW_EXPONENT) -> Scale | None:
    """Row scales from the mean square gradients of the outputs, [rows]; None where all are 0."""
    if not np.isfinite(squares).all() or squares.max() <= 0:
        return None
    return _log8(bounded(squares) ** (-exponent / 2), ROW_OCTAVE_STEPS)


def bounded(squares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean square gradients with the quietest raised to a hundredth of the mean, divided by their geometric mean."""
    raised = np.maximum(squares, squares.mean() * _QUIETEST_ROW)
    result: NDArray[np.float64] = raised / math.exp(float(np.log(raised).mean()))
    return result


def is_uneven(matrix: torch.Tensor) -> bool:
    """Whether no step suits all rows of float32 [rows, columns], however many bits a weight may take."""
    rms = _row_rms(matrix)
    alive = rms[rms > 0]
    middle = float(np.median(alive)) if alive.size else 0.0
    return bool(((alive < middle / _UNEVEN) | (alive > middle * _UNEVEN)).any())


def norm_scale(matrix: torch.Tensor) -> Scale:
    """Row scales from the rms of the rows of float32 [rows, columns]: for tensors of which no gradient is known."""
    rms = _row_rms(matrix)
    if not rms.any():
        rms = np.ones(len(rms))
    # Rows of zeros have no scale of their own, and must not move the mean of the others.
    alive = rms[rms > 0]
    if alive.min() < alive.max() * _QUIETEST_NORM:
        middle = math.sqrt(alive.min()) * math.sqrt(alive.max())
        return Scale((np.where(rms > 0, rms, middle) / middle).astype(np.float32), "f32")
    return _log8(np.where(rms > 0, rms, np.exp(np.log(alive).mean())), ROW_OCTAVE_STEPS)


def _row_rms(matrix: torch.Tensor) -> NDArray[np.float64]:
    values = matrix.numpy()
    rms: NDArray[np.float64] = np.sqrt(
        np.einsum("ij,ij->i", values, values, dtype=np.float64) / values.shape[1]
    )
    return rms


def mean_log_rms(scaled: torch.Tensor) -> float:
    """Mean over columns of the log2 of their rms, of weights in units of the scales; float32 [rows, columns]."""
    rms = scaled.double().square().mean(0).sqrt()
    return float(torch.where(rms > 0, rms, _RMS_OF_ZEROS).log2().mean())


def _order(factor: Factor, n_columns: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    order: np.ndarray[tuple[int], np.dtype[np.int64]]
    order = np.arange(n_columns) if factor.order is None else factor.order.numpy()
    return order


def _log8(values: np.ndarray[tuple[int], np.dtype[np.float64]], octave_steps: int) -> Scale:
    """The values on a grid of octaves, with a geometric mean of 1 before rounding."""
    return to_log8((values / math.exp(float(np.log(values).mean()))).astype(np.float32), octave_steps)
