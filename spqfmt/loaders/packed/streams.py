"""From where a part lives, compressed or on disk, through the decompression buffers to whoever computes with it."""

from collections.abc import Iterator
from contextlib import contextmanager

from spqfmt.codecs.base import Bytes
from spqfmt.kernels.pages import allocate
from spqfmt.loaders.packed.buffers import Buffers, View, lent
from spqfmt.loaders.packed.expert_parts import ExpertParts
from spqfmt.loaders.packed.lookup import RowCache
from spqfmt.loaders.packed.ring import Ring
from spqfmt.loaders.packed.store import Store
from spqfmt.residency.inventory import N_BUFFERS, N_READERS, N_ROW_SLOTS
from spqfmt.residency.plan import Plan


class Streams:
    """What is not decoded in memory, part by part through the decompression buffers; for one thread at a time.

    All threads decode a part just before its product: where they compute next, that is faster than leaving it to others
    beside the computation (spec/decisions/0020). What lives on disk is read ahead by threads that do nothing else.
    """

    def __init__(self, plan: Plan, store: Store) -> None:
        self._store = store
        products = [n for n, planned in enumerate(plan.parts) if planned.item.products]
        looked_up = [planned.item.part for planned in plan.parts if planned.item.lookups]
        dense = [n for n in products if plan.parts[n].item.share is None]
        on_disk = [n for n in dense if plan.parts[n].residency == "disk"]
        stored = [part.stored_bytes for part in store.parts]
        self._ring = (
            Ring(sizes=stored, order=on_disk, buffers=store.reads, n_workers=N_READERS, fill=store.read)
            if on_disk
            else None
        )
        self.experts = ExpertParts(plan, store) if len(dense) < len(products) else None
        largest = max((store.parts[n].decoded_bytes for n in products), default=0)
        self._buffers = Buffers([allocate(largest) for _ in range(N_BUFFERS)])
        self.rows = RowCache(
            store,
            max((part.decoded_bytes for part in looked_up), default=0),
            max((part.stored_bytes for part in looked_up), default=0),
            N_ROW_SLOTS,
        )

    @property
    def n_bytes(self) -> int:
        """Memory of the buffers but for the store's."""
        return self._buffers.n_bytes + self.rows.n_bytes

    def close(self) -> None:
        """Stop the threads that read ahead."""
        if self._ring is not None:
            self._ring.close()
        if self.experts is not None:
            self.experts.close()

    @contextmanager
    def lend(self, number: int, name: str) -> Iterator[View]:
        """The decoded bytes of a part while the context lasts. Raises what reading or decoding it raises."""
        part = self._store.parts[number]
        if self.experts is not None and number in self.experts:
            with self.experts.lend(number, name, self._buffers) as view:
                yield view
            return
        if part.is_stored_as_decoded:
            with self._stored(number, name) as stored:
                yield stored
            return

        def decode(out: Bytes) -> None:
            with self._stored(number, name) as stored:
                self._store.decode(number, stored.bytes, out)

        with self._buffers.lend(name, part.decoded_bytes, decode) as view:
            yield view

    @contextmanager
    def _stored(self, number: int, name: str) -> Iterator[View]:
        in_memory = self._store.held(number)
        if in_memory is not None:
            with lent(name, in_memory) as view:
                yield view
            return
        assert self._ring is not None
        with self._ring.lend(number, name) as view:
            yield view
