"""Memory straight from the system, in large pages as long as these come fast."""

import contextlib
import mmap
import time
from functools import cache

import numpy as np
import numpy.typing as npt

_LARGE_BYTES = 2 << 20
"""What a large page of x86-64 holds, and of most of AArch64."""
_SAMPLE_BYTES = 256 << 10
_SLOW_AT_MOST = 3
"""After so many slow large pages no others are asked for in this process."""
_slow: list[float] = []


def allocate(n_bytes: int) -> npt.NDArray[np.uint8]:
    """Private pages of the system, zero, uint8[n_bytes]; they go back to the system with the last array over them.

    Not from the heap: what is freed there may stay with the process.
    """
    return np.frombuffer(_pages(n_bytes), np.uint8) if n_bytes else np.empty(0, np.uint8)


def allocate_large(n_bytes: int) -> npt.NDArray[np.uint8]:
    """What `allocate` gives, in large pages if the first of them comes faster than small ones in its place.

    Clearing memory page by page takes three times as long as by large ones, and as long as decoding into it. But a
    virtual machine may have given just its large pieces back to its host: then they take four times as long.
    """
    if n_bytes < 2 * _LARGE_BYTES or not hasattr(mmap, "MADV_HUGEPAGE") or len(_slow) >= _SLOW_AT_MOST:
        return allocate(n_bytes)
    pages = _pages(n_bytes)
    memory = np.frombuffer(pages, np.uint8)
    with contextlib.suppress(OSError):  # a kernel without them
        pages.madvise(mmap.MADV_HUGEPAGE)
        first_large = -memory.ctypes.data % _LARGE_BYTES
        started = time.thread_time()
        memory[first_large] = 0
        taken = time.thread_time() - started
        if taken > _small_seconds():
            _slow.append(taken)
            pages.madvise(mmap.MADV_NOHUGEPAGE)
    return memory


def _pages(n_bytes: int) -> mmap.mmap:
    return mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


@cache
def _small_seconds() -> float:
    """How long small pages in the place of a large one take to come."""
    memory = allocate(_SAMPLE_BYTES)
    started = time.thread_time()
    memory[:: mmap.PAGESIZE] = 0
    return (time.thread_time() - started) * (_LARGE_BYTES / _SAMPLE_BYTES)
