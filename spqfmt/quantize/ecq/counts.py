"""How often codes occur, what each costs with a table of that, and how a matrix is cut for those that choose them."""

import math

import numpy as np
from numpy.typing import NDArray

from spqfmt.codecs.elements import Elements
from spqfmt.codecs.threads import n_threads
from spqfmt.schemes.base import Float32

BLOCK = 64
"""Columns whose errors reach the other columns at once, as one matrix product."""
_WORTH_THREADS = 1 << 18
"""Weights from which on starting threads for each block pays."""
_UNSIGNED = np.arange(-128, 128).astype(np.int8).view(np.uint8)


def threads_for(n_weights: int) -> int:
    """How many threads choose codes of a matrix of so many weights."""
    return n_threads() if n_weights >= _WORTH_THREADS else 1


def counts_of(codes: Elements) -> NDArray[np.int64]:
    """How often each code from -128 to 127 occurs."""
    return np.bincount(codes.reshape(-1).view(np.uint8), minlength=256).astype(np.int64)[_UNSIGNED]


def code_bits(counts: NDArray[np.int64]) -> Float32:
    """What each code costs with a table of these counts; a code that does not occur costs what half a one would."""
    share = counts + 0.5
    share[0] = 0
    bits = np.zeros(256, np.float32)
    bits[1:] = -np.log2(share[1:] / share.sum())
    return bits


def entropy_bits(counts: NDArray[np.int64]) -> float:
    """Order-0 entropy of all codes together, in bits."""
    n, seen = counts.sum(), counts[counts > 0].astype(np.float64)
    return float(n * math.log2(n) - (seen * np.log2(seen)).sum()) if n else 0.0
