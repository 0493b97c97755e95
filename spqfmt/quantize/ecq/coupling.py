"""Rows that make up for each other's errors, as columns do in the feedback; KFAC, YAQA (arXiv 2505.22988).

With H the Hessian of a layer's inputs and G the second moments of the gradients of its outputs, an error E of its
weights costs about tr(G E H E^T). Steps of rows (grid.py) know G's diagonal alone. Here rows are quantized some at
once, and what they are off by moves what is wanted of the others: first of those behind them, by a factor of G as over
columns, and when codes are made better once more, of all.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from spqfmt.codecs.elements import Elements
from spqfmt.kernels.rate import ESCAPE
from spqfmt.quantize.ecq.coding import APART
from spqfmt.quantize.ecq.counts import code_bits, counts_of
from spqfmt.quantize.ecq.descent import descend
from spqfmt.quantize.ecq.grid import InputGrid, bounded
from spqfmt.quantize.ecq.moments import OutputMoments
from spqfmt.quantize.ecq.sweep import (
    Chosen,
    Escapes,
    RowGrid,
    all_bits,
    feed_back,
    is_ordinary,
    nearest_codes,
    slopes_of,
)
from spqfmt.quantize.feedback import factorize
from spqfmt.schemes.base import Float32

DAMPING = 0.3
"""In means of the diagonal of G, where it was seen on many tokens."""
_NOISE_DAMPING = 4.0
"""More of it, times rows / tokens: G is then partly noise."""
_ROWS_AT_ONCE = 8
_PASSES = 2


@dataclass(frozen=True)
class Coupling:
    """G, damped, float32 [rows, rows]; its factor `upper` in the order `order`, as feedback.factorize has it.

    `weight` float64 [rows]: what an error of a row costs that the rows behind it make up for at best.
    """

    matrix: Float32
    order: NDArray[np.int64]
    upper: torch.Tensor
    weight: NDArray[np.float64]

    @classmethod
    def of(cls, moments: OutputMoments) -> "Coupling | None":
        """Damp and factor; None where that cannot be done."""
        matrix, n = moments.matrix.float().cpu(), len(moments.matrix)
        damping = DAMPING + _NOISE_DAMPING * n / max(1, moments.n_tokens)
        factor = factorize(matrix, damping, act_order=True, dtype=torch.float32)
        if factor.note or factor.order is None:
            return None
        damped = matrix.clone()
        damped.diagonal().add_(damping * float(matrix.diagonal().double().mean()))
        weight = np.empty(n)
        weight[factor.order.numpy()] = factor.upper.diagonal().double().numpy() ** -2
        return cls(damped.numpy(), factor.order.numpy(), factor.upper, weight)


@dataclass(frozen=True)
class _Work:
    """A matrix in the order of its grid's columns, `weights`, and what codes stand for; float32 [rows, columns]."""

    weights: Float32
    codes: Elements
    values: Float32
    row_step: Float32
    column_step: Float32

    def put(self, rows: NDArray[np.int64], codes: Elements, kept: Float32) -> None:
        """Take codes of some rows, and the values of those that are escapes, row after row."""
        values = codes.astype(np.float32) * self.row_step[rows, None] * self.column_step
        values[codes == ESCAPE] = kept
        self.codes[rows], self.values[rows] = codes, values


def choose_coupled(
    matrix: torch.Tensor, grid: InputGrid, rows: RowGrid, step: np.float32, coupling: Coupling
) -> Chosen | None:
    """Quantize `matrix`, float32 [rows, columns], with this step; None where steps are out of the ordinary."""
    row_scale = rows.step(len(matrix))
    if not is_ordinary(step * row_scale):
        return None
    weights = np.ascontiguousarray(matrix.numpy()[:, grid.order])
    work = _Work(
        weights=weights,
        codes=np.empty(weights.shape, np.int8),
        values=np.empty_like(weights),
        row_step=step * row_scale,
        column_step=grid.column_step[grid.order],
    )
    exponents = np.zeros(len(matrix), np.int32)

    def slopes(weight: NDArray[np.float64]) -> Float32:
        """What a bit is worth in each row where errors of rows cost so much."""
        return slopes_of(
            grid,
            replace(rows, weight=bounded(weight)),
            row_scale,
            step=float(step),
            error=APART.error,
            exponents=exponents,
        )

    counts = _feed_back(work, grid, coupling, slopes(coupling.weight))
    if grid.hessian is not None:
        diagonal = coupling.matrix.diagonal().astype(np.float64)
        counts = _improve(work, grid, coupling, slope=slopes(diagonal), counts=counts)
    at_rows, places = np.nonzero(work.codes == ESCAPE)
    escapes = Escapes(at_rows, grid.order[places], work.values[at_rows, places])
    bits, counts = all_bits(counts)
    return Chosen(
        codes=APART.settled(work.codes)[:, np.argsort(grid.order)],
        escapes=escapes.in_rows(np.arange(len(matrix))),
        bits=bits,
        counts=counts,
    )


def _feed_back(work: _Work, grid: InputGrid, coupling: Coupling, slope: Float32) -> NDArray[np.int64]:
    """Choose all codes twice, the second time by the bits of the first; their counts."""
    order, upper = coupling.order, coupling.upper
    counts = counts_of(nearest_codes(work.weights, work.row_step, work.column_step))
    for _ in range(_PASSES):
        bits, counts = code_bits(counts), np.zeros(256, np.int64)
        wanted = torch.from_numpy(work.weights[order])
        for first in range(0, len(order), _ROWS_AT_ONCE):
            rows = order[first : first + _ROWS_AT_ONCE]
            end = first + len(rows)
            left = wanted[first:end].numpy().copy()
            codes = feed_back(
                left,
                grid,
                APART,
                row_step=work.row_step[rows],
                column_step=work.column_step,
                slope=slope[rows],
                bits=bits,
            )
            work.put(rows, codes, left[codes == ESCAPE])
            counts += counts_of(codes)
            # As many columns of a matrix do: the inverse of their corner of U stands for 1 / U_jj.
            passed_on = torch.linalg.solve_triangular(
                upper[first:end, first:end], upper[first:end, end:], upper=True
            )
            wanted[end:] -= passed_on.t() @ (wanted[first:end] - torch.from_numpy(work.values[rows]))
    return counts


def _improve(
    work: _Work, grid: InputGrid, coupling: Coupling, *, slope: Float32, counts: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Make codes better, some rows at once, with all others as they are; the new counts.

    Rows that change together cost no more than if each had the sum of what it shares with them to itself.
    """
    hessian = torch.from_numpy(grid.hessian).to(grid.device)
    order, g = coupling.order, coupling.matrix
    errors = work.values - work.weights
    parts = [order[first : first + _ROWS_AT_ONCE] for first in range(0, len(order), _ROWS_AT_ONCE)]
    for _ in range(grid.sweeps):
        for rows in parts:
            together = np.abs(g[np.ix_(rows, rows)]).sum(1)
            wanted = work.values[rows] - g[rows] @ errors / together[:, None]
            codes = work.codes[rows]
            kept = work.values[rows][codes == ESCAPE]
            others = counts - counts_of(codes)
            codes = descend(
                codes,
                wanted,
                1,
                kept=kept,
                hessian=hessian,
                row_step=work.row_step[rows],
                column_step=work.column_step,
                slope=slope[rows] * (g.diagonal()[rows] / together),
                others=others,
            )
            counts = others + counts_of(codes)
            work.put(rows, codes, kept)
            errors[rows] = work.values[rows] - work.weights[rows]
    return counts
