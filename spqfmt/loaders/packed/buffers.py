"""Memory for weights, and who may look into it."""

import mmap
import weakref

import numpy as np

from spqfmt.codecs.base import Bytes
from spqfmt.errors import SpqError


class TakenBackError(SpqError):
    """A view of weights was used, or is still held, after its buffer was taken back."""


def allocate(n_bytes: int) -> Bytes:
    """Private pages of the system, zero, uint8[n_bytes]; they go back to the system with the last array over them.

    Not from the heap: what is freed there may stay with the process.
    """
    if n_bytes == 0:
        return np.empty(0, np.uint8)
    pages = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(pages, np.uint8)


class View:
    """The decoded bytes of one part, lent until `take_back`."""

    def __init__(self, name: str, buffer: Bytes) -> None:
        self.name = name
        # An array of its own over the memory: numpy makes it the base of every array and tensor that comes from it.
        self._lent: Bytes | None = np.frombuffer(buffer.data, np.uint8)
        self._watch = weakref.ref(self._lent)

    @property
    def bytes(self) -> Bytes:
        """The bytes, uint8, for reading. Raises TakenBackError when the buffer was taken back."""
        if self._lent is None:
            raise TakenBackError(f"the buffer of {self.name} was taken back and may hold other weights")
        return self._lent

    def take_back(self) -> bool:
        """Whether the buffer may be filled again: False while an array over it is still alive somewhere."""
        self._lent = None
        return self._watch() is None
