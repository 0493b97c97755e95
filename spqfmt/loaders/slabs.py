"""Memory for the weights of a model: pieces of some large pages, which tensors of one size share."""

import threading
from collections import Counter
from collections.abc import Iterable

import numpy as np

from spqfmt.codecs.base import Bytes
from spqfmt.kernels.pages import allocate_large

_SLAB_BYTES = 32 << 20
_LEAST_BYTES = 1 << 16
"""Smaller tensors come from the heap: the system's pages are too large for them."""


class Slabs:
    """Room for tensors of known sizes. Those of one size, which come and go together, share slabs.

    A slab has room for exactly as many as fit, and goes back to the system with the last of them. Any thread may take.
    """

    def __init__(self, sizes: Iterable[int]) -> None:
        self._left = Counter(sizes)
        self._free: dict[int, list[Bytes]] = {}
        self._lock = threading.Lock()

    def take(self, n_bytes: int) -> Bytes:
        """Room for a tensor of this size, uint8; what is in it is unspecified."""
        if n_bytes < _LEAST_BYTES:
            return np.empty(n_bytes, np.uint8)
        with self._lock:
            free = self._free.get(n_bytes)
            if not free:
                n = max(1, min(self._left[n_bytes], _SLAB_BYTES // n_bytes))
                slab = allocate_large(n * n_bytes)
                free = [slab[at : at + n_bytes] for at in range(0, slab.size, n_bytes)][::-1]
                self._free[n_bytes] = free
            self._left[n_bytes] -= 1
            return free.pop()
