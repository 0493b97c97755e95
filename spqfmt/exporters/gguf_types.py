"""Which of ggml's blocks hold the codes of a grid exactly, and these blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from spqfmt.exporters.base import OF_ANOTHER_ORDER, EvenGrid
from spqfmt.exporters.layers import holds
from spqfmt.kernels.ggml_blocks import put_together
from spqfmt.kernels.ggml_types import BlockType
from spqfmt.schemes.base import Float32

BLOCK = 32
_BYTES_AT_ONCE = 1 << 25
"""Rows are made into blocks some at a time, so that their signed codes take little room."""


class Fit(NamedTuple):
    """The types of blocks that hold a matrix, the smallest first, or why there is none."""

    types: tuple[str, ...]
    why: str = ""


def fit(grid: EvenGrid, codes: NDArray[np.uint8]) -> Fit:
    """The blocks whose scale * code, or scale * code - minimum, is exactly what the grid gives."""
    columns = codes.shape[1]
    if grid.column_groups is not None:
        return Fit((), OF_ANOTHER_ORDER)
    if columns % BLOCK:
        return Fit((), f"{columns} columns are no multiple of blocks of {BLOCK}")
    if grid.group_size % BLOCK and grid.group_size < columns:
        return Fit((), f"its groups of {grid.group_size} columns are no multiple of blocks of {BLOCK}")
    if not holds(grid.scale, "f16"):
        return Fit((), "its scales are no numbers of F16")
    minimum = _minimum(grid)
    has_minimum = holds(minimum, "f16")
    if grid.minimum is not None and not has_minimum:
        return Fit((), "its minimums are no numbers of F16")
    bounds = [(0, 0)] if grid.minimum is not None else _bounds(grid, codes)
    low, high = min(first for first, _ in bounds), max(last for _, last in bounds)
    most = int(codes.max())
    fits: Mapping[str, bool] = {
        "Q4_0": grid.minimum is None and low >= -8 and high <= 7,
        "Q4_1": has_minimum and most <= 15,
        "Q5_0": grid.minimum is None and low >= -16 and high <= 15,
        "Q5_1": has_minimum and most <= 31,
        "Q8_0": grid.minimum is None and low >= -128 and high <= 127,
    }
    types = tuple(name for name, does in fits.items() if does)
    return Fit(types, "" if types else f"its codes lie from {low} to {high} around their zero points")


def blocks(kind: BlockType, grid: EvenGrid, codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The blocks of a matrix that fits, uint8 [rows, bytes of a row]."""
    rows, columns = codes.shape
    made = np.empty((rows, columns // BLOCK * kind.n_bytes), np.uint8)
    step = max(1, _BYTES_AT_ONCE // columns)
    minimum = _minimum(grid) if "minimums" in kind.dtypes else None
    for first in range(0, rows, step):
        some = slice(first, first + step)
        found = codes[some]
        parts = {"scales": _of_blocks(grid.scale[some], grid, columns)}
        if minimum is not None:
            parts["minimums"] = _of_blocks(minimum[some], grid, columns)
        else:
            zero = grid.zero[some].repeat(grid.group_size, 1)[:, :columns]
            found = (found.astype(np.int16) - zero).astype(np.int8)
        by_block = put_together(kind, {"codes": found.reshape(-1, BLOCK), **parts})
        made[some] = by_block.reshape(len(found), -1)
    return made


def _minimum(grid: EvenGrid) -> Float32:
    """What is subtracted of scale * code."""
    return grid.scale * grid.zero.astype(np.float32) if grid.minimum is None else grid.minimum


def _bounds(grid: EvenGrid, codes: NDArray[np.uint8]) -> list[tuple[int, int]]:
    """The smallest and the largest code of each column of groups, counted from the zero points."""
    found = []
    for g in range(grid.scale.shape[1]):
        group = codes[:, g * grid.group_size : (g + 1) * grid.group_size]
        lows, highs = (group.min(1) - grid.zero[:, g]), (group.max(1) - grid.zero[:, g])
        found.append((int(lows.min()), int(highs.max())))
    return found


def _of_blocks(numbers: Float32, grid: EvenGrid, columns: int) -> NDArray[np.uint16]:
    """A number for each block, as the bits of F16."""
    spread = numbers.astype(np.float16).view(np.uint16)
    each = -(-min(grid.group_size, columns) // BLOCK)
    return spread.repeat(each, 1)[:, : columns // BLOCK].reshape(-1, 1)
