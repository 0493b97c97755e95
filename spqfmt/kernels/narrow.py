"""8-bit codes of low entropy in half the memory: 4 bits each, and the few that do not lie among 16 values apart.

A form of memory, which is in no file. What is widened again is the codes as they were, so that whatever is computed
from them is the same to the bit.
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from spqfmt.kernels import _native

Bytes: TypeAlias = npt.NDArray[np.uint8]

_HEADER_BYTES, _BLOCK, _BLOCK_BYTES, _ESCAPE_BYTES = 8, 1 << 12, 4, 3


def narrow_bytes(n_codes: int, n_escapes: int) -> int:
    """Bytes of the narrow form of `n_codes` codes, of which `n_escapes` have none of the 16 values."""
    blocks = -(-n_codes // _BLOCK) + 1
    return _HEADER_BYTES + -(-n_codes // 2) + _BLOCK_BYTES * blocks + _ESCAPE_BYTES * n_escapes


def narrow(codes: Bytes, out: Bytes) -> bool:
    """Whether the narrow form of `codes` has room in `out`, which has it then; else `out` is unspecified."""
    return _native.narrow(codes, out)


def widen(narrowed: Bytes, out: Bytes, n_threads: int = 1) -> None:
    """Fill `out` with the codes whose narrow form `narrowed` begins with. ValueError where that is of fewer or more."""
    _native.widen(narrowed, out, n_threads)


class NarrowCodes(_native.NarrowCodes):
    """The codes of whole rows in their narrow form, one run after the other, for the products of a CodeMatrix.

    They are widened some rows at a time, in the nearest cache. The memory is borrowed.
    """

    def __init__(self, runs: Sequence[tuple[Bytes, int]], n_columns: int) -> None:
        """`runs`: the narrow form of each, and its rows. ValueError where they do not fit together."""
        super().__init__(list(runs), n_columns)


class PieceCodes(_native.PieceCodes):
    """Signed 8-bit codes in pieces, each of all rows and some columns, for the products of a CodeMatrix.

    That has factors of rows, a permutation and no outliers. Each piece is a product of its own; their float32 results
    are added in this order. The memory is borrowed.
    """

    def __init__(self, pieces: Sequence[tuple[Bytes | NarrowCodes, int]], n_rows: int) -> None:
        """`pieces`: the codes of each, uint8 or narrow, and its columns. ValueError where they do not fit together."""
        super().__init__(list(pieces), n_rows)
