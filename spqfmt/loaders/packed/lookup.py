"""Parts that rows of embeddings are looked up in: decoded one by one, and the last ones used are kept."""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from spqfmt.codecs.base import Bytes
from spqfmt.kernels.pages import allocate
from spqfmt.loaders.packed.buffers import TakenBackError, View
from spqfmt.loaders.packed.store import Store


class RowCache:
    """`n_slots` decoded parts; the one used longest ago makes room. For one thread at a time.

    `stored_bytes`: of the largest part, for those that are read from disk.
    """

    def __init__(self, store: Store, slot_bytes: int, stored_bytes: int, n_slots: int) -> None:
        self._store = store
        self._stored = allocate(stored_bytes)
        self._free = [allocate(slot_bytes) for _ in range(n_slots)]
        self._kept: OrderedDict[int, Bytes] = OrderedDict()
        self._held: list[tuple[View, Bytes]] = []
        self.n_bytes = slot_bytes * n_slots + stored_bytes

    @contextmanager
    def lend(self, number: int, name: str) -> Iterator[View]:
        """The decoded bytes of a part while the context lasts.

        Raises what reading or decoding raises; TakenBackError where arrays over all slots have outlived their loans.
        """
        size = self._store.parts[number].decoded_bytes
        buffer = self._kept.pop(number, None)
        if buffer is None:
            buffer = self._claim()
            try:
                self._fill(number, buffer[:size])
            except BaseException:
                self._free.append(buffer)
                raise
        view = View(name, buffer[:size])
        try:
            yield view
        finally:
            if view.take_back():
                self._kept[number] = buffer
            else:
                self._held.append((view, buffer))

    def _claim(self) -> Bytes:
        """A slot that may be filled."""
        if not self._free:
            self._free = [buffer for view, buffer in self._held if view.take_back()]
            self._held = [(view, buffer) for view, buffer in self._held if not view.take_back()]
        if self._free:
            return self._free.pop()
        if self._kept:
            return self._kept.popitem(last=False)[1]
        names = ", ".join(view.name for view, _ in self._held)
        raise TakenBackError(f"arrays over buffers that were taken back are still held: {names}")

    def _fill(self, number: int, out: Bytes) -> None:
        stored = self._store.held(number)
        if stored is None:
            stored = self._stored[: self._store.parts[number].stored_bytes]
            self._store.read(number, stored)
        self._store.decode(number, stored, out)
