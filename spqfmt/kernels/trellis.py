"""Path codes of a trellis -> codes, and back (FORMAT.md 5.3).

Down the rows of a tile, in each column: the lowest bit of a code is the second bit of the code before it, plus those of
the two before that, without carry; the path code is all other bits. So a path code has its code's sign, and needs no
table.
"""

import numpy as np
from numpy.typing import NDArray

from spqfmt.kernels import _native

Codes = NDArray[np.int8]
History = NDArray[np.int8]
"""The codes of the three rows before, the last one first: int8 [3, columns]. What else was there does not matter."""

HISTORY_ROWS = 3


def unfold(codes: Codes, height: int, first: int, history: History, n_threads: int = 1) -> bool:
    """Turn path codes, int8 [rows, columns], contiguous, into codes where they are; whether all were path codes.

    A tile has `height` rows; of the one that the rows begin in, `first` rows went before, whose last three codes
    `history` has, and it is left with those of the last rows. Codes are unspecified where the answer is no.
    `n_threads` as in native.decode_chunks.
    """
    if not codes.size:
        return True
    whole = np.ascontiguousarray(history)
    fits = _native.unfold_paths(
        codes, codes.shape[1], height=height, passed=first, history=whole, n_threads=n_threads
    )
    if whole is not history:
        history[:] = whole
    return fits


def fold(codes: Codes, height: int) -> Codes:
    """Path codes of codes, int8 [rows, columns], in tiles of `height` rows. ValueError where they are no path."""
    for first in range(0, len(codes), height):
        tile = codes[first : first + height]
        before = np.concatenate([np.zeros((HISTORY_ROWS, tile.shape[1]), np.int8), tile])
        lowest = (before[2:-1] >> 1) ^ before[1:-2] ^ before[:-3]
        if ((tile ^ lowest) & 1).any():
            raise ValueError("the codes are no path of the trellis")
    path: Codes = codes >> 1
    return path
