"""Memory straight from the system, in pages as large as it has."""

import contextlib
import mmap

import numpy as np
import numpy.typing as npt

_HUGE_BYTES = 2 << 20
"""What a large page of x86-64 holds, and of most of AArch64."""


def allocate(n_bytes: int) -> npt.NDArray[np.uint8]:
    """Private pages of the system, zero, uint8[n_bytes]; they go back to the system with the last array over them.

    Not from the heap: what is freed there may stay with the process. Large pages are asked for: clearing memory page by
    page takes three times as long as that, and more than decoding into it. No page lies beyond `n_bytes`.
    """
    if n_bytes == 0:
        return np.empty(0, np.uint8)
    pages = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if n_bytes >= _HUGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, np.uint8)
