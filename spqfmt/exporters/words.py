"""Codes in words of 32 bits, as GPTQ and compressed-tensors pack them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from spqfmt.codecs.elements import pack_elements

WORD = 32
_BY_ELEMENTS = (2, 4, 8)
# So many rows are bits at once where codes do not fill bytes.
_BITS_AT_ONCE = 1 << 22


def in_words(codes: NDArray[Any], bits: int) -> NDArray[np.int32]:
    """`codes`, uint8 [n, k] below 2^bits, as [n, ceil(k * bits / 32)]: the first in the lowest bits.

    Zeros stand behind the last. Codes of 3 bits run on from one word to the next.
    """
    n, k = codes.shape
    words = -(-k * bits // WORD)
    filled = words * WORD // bits if bits in _BY_ELEMENTS else -(-k // WORD) * WORD
    if filled != k:
        codes = np.pad(codes, ((0, 0), (0, filled - k)))
    if bits in _BY_ELEMENTS:
        return pack_elements(codes, f"u{bits}").view("<i4").reshape(n, words)
    made = np.empty((n, words), "<i4")
    step = max(1, _BITS_AT_ONCE // filled)
    for first in range(0, n, step):
        some = np.ascontiguousarray(codes[first : first + step])
        of_codes = np.unpackbits(some.reshape(-1, 1), axis=1, bitorder="little")[:, :bits]
        packed = np.packbits(of_codes.reshape(len(some), -1), axis=1, bitorder="little")
        made[first : first + step] = packed.view("<i4")[:, :words]
    return made


def middle_shift(bits: int, to_bits: int) -> np.uint8:
    """What moves the middle of codes of some bits to that of more."""
    return np.uint8((1 << (to_bits - 1)) - (1 << (bits - 1)))
