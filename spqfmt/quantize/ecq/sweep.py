"""One matrix onto its grid: GPTQ's feedback with codes chosen by error and bits."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from spqfmt.codecs.elements import Elements
from spqfmt.kernels.products import one_thread
from spqfmt.kernels.rate import ESCAPE
from spqfmt.quantize.ecq.coding import APART, Coding
from spqfmt.quantize.ecq.counts import BLOCK, code_bits, counts_of, entropy_bits, threads_for
from spqfmt.quantize.ecq.descent import descend
from spqfmt.quantize.ecq.grid import (
    END_EXPONENT,
    ROW_EXPONENT,
    InputGrid,
    bounded,
    gradient_scale,
    is_uneven,
    norm_scale,
)
from spqfmt.quantize.layouts import choose_layout
from spqfmt.schemes.base import Float32
from spqfmt.schemes.codes import Layout
from spqfmt.schemes.floats import Scale
from spqfmt.schemes.outliers import Outliers
from spqfmt.schemes.uniform import Uniform

SLOPE = 1.0
"""The price of a bit, in units of what a bit saves on an even grid at high rate: step^2 * ln(2) / 6."""
ESCAPE_BITS = 24.0
"""About what an outlier costs: its value in 16 bits and its gap."""
_AT_ONCE = 1 << 23
"""About so many weights of a matrix are worked on at once."""
_ORDINARY = 40
"""Rows whose steps lie within so many octaves of 1 are worked on as they are; others are multiplied by a power of 2,
so that squares of their errors stay in float32."""


@dataclass(frozen=True)
class RowGrid:
    """How the step varies over rows, and what an error of a row costs. None: alike."""

    scale: Scale | None = None
    weight: NDArray[np.float64] | None = None
    """What an error of a row costs: mean square gradients, as a rule; float64 [rows]."""
    is_uneven: bool = False
    """Whether steps are of norms because the rows have too little in common."""

    @classmethod
    def of_end(cls, matrix: torch.Tensor, costs: NDArray[np.float64]) -> "RowGrid":
        """Steps and errors of embedding or head, by what errors of each row cost, float64 [rows]."""
        return cls.of_layer(matrix, costs, END_EXPONENT)

    @classmethod
    def of_layer(
        cls, matrix: torch.Tensor, mean_squares: NDArray[np.float64] | None, exponent: float = ROW_EXPONENT
    ) -> "RowGrid":
        """Steps and errors by the gradients, where they are known, or all alike.

        Rows too uneven for that have their own by their norms: as for what no input is known of, none is lost.
        """
        if is_uneven(matrix):
            return replace(cls.of_norms(matrix), is_uneven=True)
        scale = None if mean_squares is None else gradient_scale(mean_squares, exponent)
        if scale is None or mean_squares is None:
            return cls(None, None)
        return cls(scale, bounded(mean_squares))

    @classmethod
    def of_norms(cls, matrix: torch.Tensor) -> "RowGrid":
        """Steps by the rms of the rows, and errors weighed so that a row's relative error is what counts."""
        scale = norm_scale(matrix)
        return cls(scale, scale.to_float32().astype(np.float64) ** -2)

    def step(self, n_rows: int) -> Float32:
        """The steps of rows as a reader restores them, float32 [rows]."""
        return np.ones(n_rows, np.float32) if self.scale is None else self.scale.to_float32()

    def picked(self, rows: NDArray[np.int64]) -> "RowGrid":
        """Return the grid of these rows alone."""
        scale, weight = self.scale, self.weight
        if scale is not None:
            scale = Scale(scale.values[rows], scale.dtype, scale.octave_steps, scale.bias)
        return replace(self, scale=scale, weight=None if weight is None else weight[rows])


@dataclass(frozen=True)
class Escapes:
    """Weights that are kept, their rows and columns, int64, row after row; float32, as the feedback left them."""

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    values: Float32

    def in_rows(self, places: NDArray[np.int64]) -> "Escapes":
        """Return them where row i is row places[i]."""
        rows = places[self.rows]
        order = np.lexsort((self.columns, rows))
        return Escapes(rows[order], self.columns[order], self.values[order])


@dataclass(frozen=True)
class Chosen:
    """Codes int8 [rows, columns], and the weights that none stands for."""

    codes: Elements
    escapes: Escapes
    bits: float
    """Order-0 entropy of the codes, and what the escapes cost."""
    counts: NDArray[np.int64]
    """How often each stored code occurs, [256] as `counts_of`."""
    layout: Layout | None = None
    """How the codes must be stored; None where any way will do."""


def choose(
    matrix: torch.Tensor,
    grid: InputGrid,
    rows: RowGrid,
    step: np.float32,
    *,
    coding: Coding = APART,
    passes: int = 2,
    counts: NDArray[np.int64] | None = None,
    order: NDArray[np.int64] | None = None,
) -> Chosen:
    """Quantize `matrix`, float32 [rows, columns], with this step; with `order` its rows in that one, as `rows` is.

    The first pass takes the bits of `counts`, or of the codes that rounding would give, another those of the pass
    before. Rows are worked on some at once, so that a large matrix takes little more memory than it has itself.
    """
    row_scale = rows.step(len(matrix))
    row_step = step * row_scale
    exponents = np.frexp(row_step)[1]
    if np.abs(exponents).max(initial=0) <= _ORDINARY:
        exponents[:] = 0
    row_step = np.ldexp(row_step, -exponents)
    column_step = grid.column_step[grid.order]
    slope = slopes_of(grid, rows, row_scale, step=float(step), error=coding.error, exponents=exponents)
    pieces = list(coding.pieces(len(matrix), max(1, _AT_ONCE // max(1, matrix.shape[1]))))

    def weights_of(piece: slice) -> Float32:
        source = matrix.numpy()[piece if order is None else order[piece]]
        return _shifted(np.ascontiguousarray(source[:, grid.order]), -exponents[piece])

    if counts is None:
        counts = np.zeros(256, np.int64)
        for piece, part in pieces:
            counts += counts_of(part.stored(nearest_codes(weights_of(piece), row_step[piece], column_step)))
    codes = np.empty(matrix.shape, np.int8)
    kept: list[Float32] = []
    for _ in range(passes):
        bits, counts, kept = code_bits(counts), np.zeros(256, np.int64), []
        for piece, part in pieces:
            work = weights_of(piece)
            codes[piece] = feed_back(
                work,
                grid,
                part,
                row_step=row_step[piece],
                column_step=column_step,
                slope=slope[piece],
                bits=bits,
            )
            counts += counts_of(part.stored(codes[piece]))
            kept.append(work[codes[piece] == ESCAPE])
    if grid.hessian is not None:
        hessian = torch.from_numpy(grid.hessian).to(grid.device)
        for (piece, part), values in zip(pieces, kept, strict=True):
            others = counts - counts_of(part.stored(codes[piece]))
            codes[piece] = descend(
                codes[piece],
                weights_of(piece),
                grid.sweeps,
                coding=part,
                kept=values,
                hessian=hessian,
                row_step=row_step[piece],
                column_step=column_step,
                slope=slope[piece],
                others=others,
            )
            counts = others + counts_of(part.stored(codes[piece]))
    at_rows, places = np.nonzero(codes == ESCAPE) if counts[0] else (np.zeros(0, np.int64),) * 2
    values = np.ldexp(np.concatenate([np.zeros(0, np.float32), *kept]), exponents[at_rows])
    escapes = Escapes(at_rows, grid.order[places], values).in_rows(np.arange(len(matrix)))
    back = np.argsort(grid.order)
    for piece, part in pieces:
        codes[piece] = part.settled(codes[piece])[:, back]
    bits_of_all, counts = all_bits(counts)
    return Chosen(codes=codes, escapes=escapes, bits=bits_of_all, counts=counts)


def all_bits(counts: NDArray[np.int64]) -> tuple[float, NDArray[np.int64]]:
    """What codes and escapes of these counts cost together, and the counts with escapes among the zeros."""
    n_escapes, stored = counts[0], counts.copy()
    stored[0], stored[128] = 0, stored[128] + n_escapes
    return entropy_bits(stored) + ESCAPE_BITS * float(n_escapes), stored


def is_ordinary(row_step: Float32) -> bool:
    """Whether squares of errors on such steps stay in float32."""
    return bool(np.abs(np.frexp(row_step)[1]).max(initial=0) <= _ORDINARY)


def nearest_codes(weights: Float32, row_step: Float32, column_step: Float32) -> Elements:
    """The codes that rounding would give; 0 for what lies beyond them."""
    nearest = np.rint(weights / row_step[:, None] / column_step)
    codes: Elements = np.where(np.abs(nearest) <= -ESCAPE - 1, nearest, 0).astype(np.int8)
    return codes


def to_uniform(
    chosen: Chosen,
    grid: InputGrid,
    rows: RowGrid,
    step: np.float32,
    shared_column_scales: str | None,
    *,
    by_rows: bool,
    trellis_rows: int | None = None,
    stacked_rows: int | None = None,
) -> Uniform:
    """Return the codes as the scheme stores them: escapes are outliers with their full value."""
    escapes, values = chosen.escapes, chosen.escapes.values
    dtype, carrier = ("f16", np.float16) if _fit_f16(values) else ("f32", np.float32)
    return Uniform(
        codes=chosen.codes,
        step=step,
        code_dtype="i8",
        row_scale=rows.scale,
        column_scale=grid.column_scale,
        outliers=(
            Outliers(escapes.rows, escapes.columns, values.astype(carrier), dtype) if values.size else None
        ),
        layout=choose_layout(chosen.codes, by_rows=by_rows) if chosen.layout is None else chosen.layout,
        shared_column_scales=None if grid.column_scale is None else shared_column_scales,
        trellis_rows=trellis_rows,
        stacked_rows=stacked_rows,
    )


def _shifted(rows: Float32, exponents: NDArray[np.int32]) -> Float32:
    """`rows` times 2^exponents, a number for each row."""
    return np.ldexp(rows, exponents[:, None]) if exponents.any() else rows


def _fit_f16(values: Float32) -> bool:
    """Whether float16 keeps the values of escapes, which lie more than 127 steps from 0, to within half a step."""
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float16).astype(np.float32)
    return bool((np.abs(narrow - values) <= np.abs(values) * 2.0**-8).all())


def slopes_of(
    grid: InputGrid,
    rows: RowGrid,
    row_scale: Float32,
    *,
    step: float,
    error: float,
    exponents: NDArray[np.int32],
) -> Float32:
    """What a bit is worth in each row, in the feedback's unit of error; row i is divided by 2^exponents[i].

    One slope for the tensor's sum of errors weighed by `rows.weight`; a row's own errors are not weighed, so its slope
    is the tensor's over its weight.
    """
    weight = np.ones(len(row_scale)) if rows.weight is None else rows.weight
    mean = float((row_scale.astype(np.float64) ** 2 * weight).mean())
    slope = SLOPE * error * math.log(2) / 6 * grid.error_factor * step**2 * mean / weight
    return np.ldexp(slope, -2 * exponents).astype(np.float32)


def feed_back(
    work: Float32,
    grid: InputGrid,
    coding: Coding,
    *,
    row_step: Float32,
    column_step: Float32,
    slope: Float32,
    bits: Float32,
) -> Elements:
    """The codes of `work`, float32 [rows, columns], which becomes what the feedback leaves of it.

    Codes are chosen here, some columns at once; what the others become is computed on the grid's device.
    """
    upper = grid.upper
    there, factor = (torch.from_numpy(values).to(grid.device) for values in (work, upper))
    n = work.shape[1]
    codes = np.empty(work.shape, np.int8)
    diagonal = np.eye(BLOCK, dtype=np.float32)
    threads = threads_for(work.size)
    with one_thread():
        for first in range(0, n, BLOCK):
            block = slice(first, min(first + BLOCK, n))
            size = block.stop - first
            part = upper[block, block] if upper.size else diagonal[:size, :size]
            if grid.device.type != "cpu":
                work[:, block] = there[:, block].cpu().numpy()
            codes[:, block], errors = coding.choose(
                work,
                block,
                part,
                row_step=row_step,
                column_step=column_step[block],
                slope=slope,
                bits=bits,
                n_threads=threads,
            )
            if upper.size and block.stop < n:
                lost = torch.from_numpy(errors).to(grid.device)
                there[:, block.stop :].addmm_(lost, factor[block, block.stop :], alpha=-1)
    return codes
