"""What codes of a matrix are chosen: each by itself, or paths of a trellis down the rows of each column."""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from spqfmt.codecs.elements import Elements
from spqfmt.kernels.rate import ESCAPE, choose_codes, improve_codes
from spqfmt.kernels.trellis import HISTORY_ROWS, unfold
from spqfmt.schemes.base import Float32

PATH_ERROR = 3.16
"""Squared error of a path at high rate, in units of step^2 / 12: its codes are as an even grid of twice the step's, and
its error is 0.79 of that grid's."""


@dataclass(frozen=True)
class Coding:
    """`borders` uint64: the first row of each tile of a trellis, and the number of rows; None without a trellis.

    The rows of a matrix are then in the order in which they are stored.
    """

    borders: NDArray[np.uint64] | None = None

    @property
    def error(self) -> float:
        """Squared error at high rate in units of step^2 / 12, and so what a bit saves."""
        return 1.0 if self.borders is None else PATH_ERROR

    @property
    def choose(self) -> Callable[..., tuple[Elements, Float32]]:
        """Codes for a block of columns inside the feedback, see kernels/rate.py."""
        return partial(choose_codes, borders=self.borders)

    @property
    def improve(self) -> Callable[..., Float32]:
        """Better codes for a block of columns."""
        return partial(improve_codes, borders=self.borders)

    def pieces(self, n_rows: int, most_rows: int) -> Iterator[tuple[slice, "Coding"]]:
        """Runs of rows, of at most so many where a tile has not more, and the coding of each."""
        cuts = range(n_rows + 1) if self.borders is None else self.borders.tolist()
        first = 0
        while first < n_rows:
            last = bisect_right(cuts, first + most_rows) - 1
            stop = max(cuts[last], cuts[bisect_right(cuts, first)])
            own = None
            if self.borders is not None:
                inside = (self.borders >= first) & (self.borders <= stop)
                own = self.borders[inside] - np.uint64(first)
            yield slice(first, stop), Coding(own)
            first = stop

    def stored(self, codes: Elements) -> Elements:
        """What the table counts in the place of codes, int8; escapes stay as they are."""
        return codes if self.borders is None else np.where(codes == ESCAPE, np.int8(ESCAPE), codes >> 1)

    def settled(self, codes: Elements) -> Elements:
        """The codes with those of escapes in place of ESCAPE: 0, or what the path makes of path code 0."""
        escapes = codes == ESCAPE
        codes = np.where(escapes, np.int8(0), codes)
        if self.borders is None or not escapes.any():
            return codes
        codes >>= 1
        borders = self.borders.tolist()
        for first, stop in pairwise(borders):
            unfold(codes[first:stop], stop - first, 0, np.zeros((HISTORY_ROWS, codes.shape[1]), np.int8))
        return codes


APART = Coding()
