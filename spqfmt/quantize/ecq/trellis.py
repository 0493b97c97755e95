"""Codes along a trellis: paths of 8 states down the stored rows of each column (FORMAT.md 5.3; decisions 0061, 0064).

A code is chosen together with all others of its column in a tile. Its lowest bit follows from those before it, so that
the grid is twice as fine as what is stored of it: at equal bits squared errors are a fifth less.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from spqfmt.quantize.base import MethodOptions, Weight
from spqfmt.quantize.ecq.coding import Coding
from spqfmt.quantize.ecq.grid import InputGrid
from spqfmt.quantize.ecq.sweep import Chosen, RowGrid, choose
from spqfmt.quantize.layouts import choose_layout
from spqfmt.schemes.codes import Layout
from spqfmt.schemes.trellis import tiles_of

TILE_ROWS = 128
"""Rows of a tile. Each begins in a given state, which costs START_BITS in each column."""
START_BITS = 1.1
_FEWEST_ROWS = 16
"""A matrix with fewer would save nothing."""
_MAGNITUDES = np.abs(4 * np.arange(256, dtype=np.uint8).view(np.int8).astype(np.int64) + 1)
"""The magnitudes of what path codes stand for, 2 k or 2 k + 1, by byte."""


@dataclass(frozen=True)
class Trellis:
    """Tiles of a tensor: rows of each, and of each matrix that the tensor stacks."""

    rows: int
    stacked_rows: int

    @classmethod
    def of(cls, weight: Weight, options: MethodOptions) -> "Trellis | None":
        """The trellis of a tensor, where one is asked for and is of use."""
        if not options.trellis or len(weight.shape) < 2 or 0 in weight.shape:
            return None
        stacked = weight.shape[-1 if weight.transposed else -2]
        return cls(TILE_ROWS, stacked) if stacked >= _FEWEST_ROWS else None

    def coding(self, n_rows: int, layout: Layout) -> Coding:
        """Tiles of the rows as they are stored."""
        pieces = tiles_of(self.rows, self.stacked_rows, layout.class_sizes).pieces(range(n_rows))
        starts = [row for rows, height, _ in pieces for row in range(rows.start, rows.stop, height)]
        return Coding(np.array([*starts, n_rows], np.uint64))


def choose_along(
    matrix: torch.Tensor, grid: InputGrid, rows: RowGrid, step: np.float32, trellis: Trellis
) -> Chosen:
    """Quantize `matrix`, float32 [rows, columns], with this step.

    Codes are chosen twice, as without a trellis: first in the order of the rows, then in the one that these codes are
    stored best in. A stack of matrices keeps its order, in which each can be read alone.
    """
    natural = trellis.coding(len(matrix), Layout())
    if trellis.stacked_rows < len(matrix):
        return replace(choose(matrix, grid, rows, step, coding=natural), layout=Layout())
    first = choose(matrix, replace(grid, hessian=None), rows, step, coding=natural, passes=1)
    layout = choose_layout(
        natural.stored(first.codes),
        by_rows=True,
        magnitudes=_MAGNITUDES,
        class_bytes=START_BITS / 8 * matrix.shape[1],
    )
    order = np.arange(len(matrix)) if layout.channel_order is None else layout.channel_order
    found = choose(
        matrix,
        grid,
        rows.picked(order),
        step,
        coding=trellis.coding(len(matrix), layout),
        passes=1,
        counts=first.counts,
        order=order,
    )
    back: NDArray[np.int64] = np.argsort(order)
    return replace(found, codes=found.codes[back], escapes=found.escapes.in_rows(order), layout=layout)
