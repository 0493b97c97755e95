"""Memory straight from the system."""

import contextlib
import ctypes
import mmap
import sys

import numpy as np
import numpy.typing as npt

from spqfmt import systems


def allocate(n_bytes: int) -> npt.NDArray[np.uint8]:
    """Private pages of the system, zero, uint8[n_bytes]; they go back to the system with the last array over them.

    Not from the heap: what is freed there may stay with the process.
    """
    return np.frombuffer(systems.pages(n_bytes), np.uint8) if n_bytes else np.empty(0, np.uint8)


def allocate_large(n_bytes: int) -> npt.NDArray[np.uint8]:
    """What `allocate` gives, in large pages (2 MiB on x86-64) where the system has them: for what each token reads.

    Products read it faster, since the processor keeps the places of few pages in mind, and clearing it takes less.
    """
    if not n_bytes:
        return allocate(0)
    pages = systems.pages(n_bytes)
    with contextlib.suppress(AttributeError, OSError):  # a system without them
        pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, np.uint8)


def give_back() -> None:
    """Let the system have what was freed on the heap, of which glibc keeps what lies between what is still used."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
