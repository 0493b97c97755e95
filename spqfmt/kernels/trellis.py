"""Path codes of a trellis -> codes, and back (FORMAT.md 5.3).

Down the rows of a tile, in each column: the lowest bit of a code is the second bit of the code before it, plus those of
the two before that, without carry; the path code is all other bits. So a path code has its code's sign, and needs no
table.
"""

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.int8]
History = NDArray[np.int8]
"""The codes of the three rows before, the last one first: int8 [3, columns]. What else was there does not matter."""

HISTORY_ROWS = 3


def unfold(codes: Codes, height: int, first: int, history: History) -> bool:
    """Turn path codes, int8 [rows, columns], into codes where they are; whether all of them are path codes.

    A tile has `height` rows; of the one that the rows begin in, `first` rows went before, whose last three codes
    `history` has, and it is left with those of the last rows. Codes are unspecified where the answer is no.
    """
    n_rows = len(codes)
    fits = not codes.size or bool(codes.min() >= -64 and codes.max() <= 63)
    at = 0
    if first:
        at = min(n_rows, height - first)
        _unfold_tiles(codes[None, :at], history[:, None])
    n_tiles = (n_rows - at) // height
    if n_tiles:
        whole = codes[at : at + n_tiles * height].reshape(n_tiles, height, codes.shape[1])
        _unfold_tiles(whole, np.zeros((HISTORY_ROWS, *whole[:, 0].shape), np.int8))
        at += n_tiles * height
    if at < n_rows:
        history[:] = 0
        _unfold_tiles(codes[None, at:], history[:, None])
    return fits


def _unfold_tiles(codes: Codes, history: History) -> None:
    """Unfold rows of tiles that lie side by side: codes [tiles, rows, columns], history [3, tiles, columns]."""
    for row in range(codes.shape[1]):
        here = codes[:, row]
        lowest = ((history[0] >> 1) ^ history[1] ^ history[2]) & np.int8(1)
        here += here
        here += lowest
        history[2], history[1] = history[1], history[0]
        history[0] = here


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
