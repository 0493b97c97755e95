"""Memory for weights, and who may look into it."""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from spqfmt.codecs.base import Bytes
from spqfmt.errors import SpqError


class TakenBackError(SpqError):
    """A view of weights was used, or is still held, after its buffer was taken back."""


class View:
    """The bytes of one part, lent until `take_back`."""

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


@contextmanager
def lent(name: str, buffer: Bytes) -> Iterator[View]:
    """The bytes of a part in memory that is never filled again; the view ends with the context all the same."""
    view = View(name, buffer)
    try:
        yield view
    finally:
        view.take_back()


class Buffers:
    """Reused memory that is lent for one part at a time; for one thread at a time."""

    def __init__(self, buffers: Sequence[Bytes]) -> None:
        self._free = list(buffers)
        self._held: list[tuple[View, Bytes]] = []
        self.n_bytes = sum(buffer.size for buffer in buffers)

    @contextmanager
    def lend(self, name: str, n_bytes: int, fill: Callable[[Bytes], None]) -> Iterator[View]:
        """What `fill` writes into `n_bytes`, while the context lasts.

        Raises what `fill` raises; TakenBackError where arrays over all buffers have outlived their loans.
        """
        buffer = self._obtain()
        view = View(name, buffer[:n_bytes])
        try:
            fill(buffer[:n_bytes])
            yield view
        finally:
            if view.take_back():
                self._free.append(buffer)
            else:
                self._held.append((view, buffer))

    def _obtain(self) -> Bytes:
        if not self._free:
            held, self._held = self._held, []
            for view, buffer in held:
                if view.take_back():
                    self._free.append(buffer)
                else:
                    self._held.append((view, buffer))
        if not self._free:
            names = ", ".join(view.name for view, _ in self._held)
            raise TakenBackError(f"arrays over buffers that were taken back are still held: {names}")
        return self._free.pop()
