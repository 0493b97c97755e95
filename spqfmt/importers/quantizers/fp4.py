"""What MXFP4 and NVFP4 have in common: two codes of f4_e2m1 in each byte, the first one in its low half."""

from __future__ import annotations

import numpy as np

from spqfmt.codecs.elements import Elements, from_planes

CODES = "f4_e2m1"
_AT_ONCE = 1 << 22


def unpacked(stored: Elements) -> Elements:
    """The codes of bytes [..., n], one a byte: [..., 2 n]."""
    flat = np.ascontiguousarray(stored).reshape(-1)
    codes = np.empty(2 * flat.size, np.uint8)
    for first in range(0, flat.size, _AT_ONCE):
        some, out = flat[first : first + _AT_ONCE], codes[2 * first : 2 * (first + _AT_ONCE)]
        from_planes(some, CODES, out.size, out)
    return codes.reshape(*stored.shape[:-1], -1)
