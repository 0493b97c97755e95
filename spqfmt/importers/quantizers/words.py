"""Codes that lie in words of integers, the first in the lowest bits: those of 3 bits go on in the next word."""

from __future__ import annotations

import numpy as np

from spqfmt.codecs.elements import Elements, from_planes

WORDS = {"i8": 8, "i16": 16, "i32": 32, "i64": 64}
"""Bits of the words that quantizers pack codes into."""
_AT_ONCE = 3 << 20


def unpacked(words: Elements, bits: int) -> Elements:
    """The codes of 2, 3, 4 or 8 bits that words hold, row after row, one a byte.

    Of 3 bits, the words must fill whole groups of three bytes.
    """
    flat = np.ascontiguousarray(words).reshape(-1).view(np.uint8)
    codes = np.empty(8 * flat.size // bits, np.uint8)
    if bits != 3:
        from_planes(flat, f"u{bits}", codes.size, codes)
        return codes
    for first in range(0, flat.size, _AT_ONCE):
        some = flat[first : first + _AT_ONCE].reshape(-1, 3).astype(np.uint32)
        together = some[:, 0] | some[:, 1] << 8 | some[:, 2] << 16
        out = codes[8 * first // 3 :][: 8 * len(some)].reshape(-1, 8)
        for k in range(8):
            out[:, k] = together >> (3 * k) & 7
    return codes


def code_dtype(bits: int) -> str:
    """The dtype that codes of so many bits are stored as: those of 3 cost no more in 4."""
    return f"u{4 if bits == 3 else bits}"
