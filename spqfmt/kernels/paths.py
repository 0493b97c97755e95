"""The cheapest of all paths of a trellis down the rows of a column, plainly; native/path_sweep.hpp agrees bit for bit.

8 states (FORMAT.md 5.3, `trellis`): in state s a code is v = 2 k + s mod 2, and k mod 2 says which state follows. Rows
are in the order of the file; in the first one of each tile the state is 0. A path costs the sum over its rows of
error / slope + bits[k], so that rows whose errors are weighed differently can share one (Viterbi).
"""

from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Float32: TypeAlias = NDArray[np.float32]
Borders: TypeAlias = NDArray[np.uint64]
"""The first row of each tile, and the number of rows."""

LARGEST_CODE = 127
_WINDOW = 8
"""Codes around a weight that are looked at."""
_DEAREST = np.float32(1e30)
_REMAINDER = np.array([0, 2, 1, 3, 2, 0, 3, 1])
"""State t follows on state t // 2 by codes with this remainder by 4, and on t // 2 + 4 by the one 2 apart."""
_BEFORE = np.arange(8) // 2


def cheapest_path(
    scaled: Float32,
    weight: Float32,
    slope: Float32,
    bits: Float32,
    fits: NDArray[np.bool_],
    borders: Borders,
) -> NDArray[np.int64]:
    """The codes of one column, int64 [rows], for weights in units of their steps, float32 [rows].

    `weight` is that of a squared error of one step, `bits` [256] those of path code k at k + 128. Where a weight does
    not fit, its path code is 0, and its code 0 or 1, by the state.
    """
    dearness = _dearness(weight, slope)
    n = len(scaled)
    below = np.floor(scaled) - (_WINDOW // 2 - 1)
    window = np.clip(below, -LARGEST_CODE, LARGEST_CODE - _WINDOW + 1).astype(np.int64)
    codes = window[:, None] + np.arange(_WINDOW)
    distance = scaled[:, None] - codes.astype(np.float32)
    costs = dearness[:, None] * distance * distance + bits[(codes >> 1) + 128]
    is_upper = costs[:, 4:] < costs[:, :4]
    best, of_best = np.empty((n, 4), np.float32), np.empty((n, 4), np.int64)
    at = np.arange(n)[:, None], codes[:, :4] & 3
    best[at] = np.where(is_upper, costs[:, 4:], costs[:, :4])
    of_best[at] = np.where(is_upper, codes[:, 4:], codes[:, :4])
    best[~fits], of_best[~fits] = [0, 0, np.inf, np.inf], [0, 1, 0, 1]
    paths = [_path(best[i:j], of_best[i:j]) for i, j in pairwise(borders.tolist())]
    return np.concatenate([np.empty(0, np.int64), *paths])


def _dearness(square: Float32, slope: Float32) -> Float32:
    """What a squared error of one step costs in bits, within what sums of it can be in float32."""
    with np.errstate(divide="ignore", over="ignore"):
        dearness: Float32 = np.minimum(square / slope, _DEAREST)
    return dearness


def _path(best: Float32, codes: NDArray[Any]) -> NDArray[np.int64]:
    """The cheapest path down one tile, of the costs and codes of each remainder by 4, [rows, 4]."""
    totals = np.full(8, np.inf, np.float32)
    totals[0] = 0
    highs = []
    for row in best:
        low, high = totals[_BEFORE] + row[_REMAINDER], totals[_BEFORE + 4] + row[_REMAINDER ^ 2]
        highs.append(high < low)
        totals = np.where(high < low, high, low)
    state, path = int(totals.argmin()), np.empty(len(best), np.int64)
    for i in range(len(best) - 1, -1, -1):
        is_high = bool(highs[i][state])
        path[i] = codes[i, _REMAINDER[state] ^ (2 * is_high)]
        state = state // 2 + 4 * is_high
    return path
