"""Parts of experts under a ceiling: those that a layer's router chose are read at once, and the often used ones stay.

The plan says how many live in memory, and which to begin with. From then on uses are counted, and a part that was read
takes the place of one that was used less. So a model that always asks for the same experts soon finds them in memory,
and one that asks for all alike reads as much as the plan foresaw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import numpy as np
from numpy.typing import NDArray

from spqfmt.codecs.base import Bytes
from spqfmt.loaders.packed.buffers import Buffers, View
from spqfmt.loaders.packed.ring import AskedRing
from spqfmt.loaders.packed.store import Store
from spqfmt.residency.inventory import N_EXPERT_READERS
from spqfmt.residency.plan import Plan

_HALVED_AFTER = 4096
"""Layers after whose passes all counts are halved, so that what a text was about before is forgotten."""


class ExpertParts:
    """For one thread at a time but for `as_they_come`, which takes the lock that sees to that."""

    def __init__(self, plan: Plan, store: Store) -> None:
        self._store = store
        self._numbers = {n for n, planned in enumerate(plan.parts) if planned.item.share is not None}
        self._uses = np.zeros(len(plan.parts), np.float32)
        self._n_asked = 0
        here = [number for number in sorted(self._numbers) if store.is_in_memory(number)]
        decoded = {number for number in here if store.decoded(number) is not None}
        self._places = (
            _Places(store, here=[n for n in here if n in decoded], is_decoded=True),
            _Places(store, here=[n for n in here if n not in decoded], is_decoded=False),
        )
        stored = [part.stored_bytes for part in store.parts]
        away = any(not store.is_in_memory(number) for number in self._numbers)
        self._ring = (
            AskedRing(
                sizes=stored,
                order=(),
                buffers=store.expert_reads,
                n_workers=N_EXPERT_READERS,
                fill=store.read,
            )
            if away
            else None
        )
        self._held: list[tuple[int, View]] = []
        """Parts in memory of which an array has outlived its loan: nothing may come into their places."""

    def __contains__(self, number: int) -> bool:
        return number in self._numbers

    def close(self) -> None:
        """Stop the threads that read."""
        if self._ring is not None:
            self._ring.close()

    def as_they_come(
        self, experts: Mapping[int, Sequence[int]], lock: AbstractContextManager[object]
    ) -> Iterator[int]:
        """Give the experts, by the numbers of their parts, those in memory first, the others as they are read."""
        ring = self._ring
        if ring is None:
            yield from experts
            return
        with lock:
            self._count([number for parts in experts.values() for number in parts])
            missing = {
                expert: [number for number in parts if not self._store.is_in_memory(number)]
                for expert, parts in experts.items()
            }
        asked = [number for parts in missing.values() for number in parts]
        ring.ask(asked)
        try:
            yield from (expert for expert, parts in missing.items() if not parts)
            away = {expert: parts[0] for expert, parts in missing.items() if parts}
            while away:
                expert = list(away)[ring.first(list(away.values()))]
                del away[expert]
                yield expert
        finally:
            ring.forget(asked)

    @contextmanager
    def lend(self, number: int, name: str, buffers: Buffers) -> Iterator[View]:
        """The decoded bytes of a part while the context lasts. Raises what reading or decoding it raises."""
        store, part = self._store, self._store.parts[number]
        here = store.decoded(number)
        if here is None:
            here = store.held(number)
            if here is not None and not part.is_stored_as_decoded:
                with buffers.lend(name, part.decoded_bytes, self._decoding(number, here)) as view:
                    yield view
                return
        if here is not None:
            view = View(name, here)
            try:
                yield view
            finally:
                if not view.take_back():
                    self._held.append((number, view))
            return
        assert self._ring is not None
        with self._ring.lend(number, name) as stored:
            if part.is_stored_as_decoded:
                self._keep(number, stored.bytes, stored.bytes)
                yield stored
                return
            with buffers.lend(name, part.decoded_bytes, self._decoding(number, stored.bytes)) as view:
                self._keep(number, stored.bytes, view.bytes)
                yield view

    def _decoding(self, number: int, stored: Bytes) -> Callable[[Bytes], None]:
        return partial(self._store.decode, number, stored)

    def _count(self, numbers: Sequence[int]) -> None:
        self._uses[numbers] += 1
        self._n_asked += 1
        if self._n_asked % _HALVED_AFTER == 0:
            self._uses /= 2

    def _keep(self, number: int, stored: Bytes, decoded: Bytes) -> None:
        """Let a part that was read live in memory from now on, where one does that was used less."""
        if self._store.is_in_memory(number):
            return
        self._held = [(other, view) for other, view in self._held if not view.take_back()]
        held = {other for other, _ in self._held}
        for places in self._places:
            values = decoded if places.is_decoded else stored
            other = places.least_used(self._uses, values.size)
            if other is not None and self._uses[other] < self._uses[number] and other not in held:
                self._store.replace(other, number, values)
                places.replace(other, number)
                return


class _Places:
    """Places in memory for parts that are held in one way, with the bytes of each, and the part that is there."""

    def __init__(self, store: Store, here: Sequence[int], *, is_decoded: bool) -> None:
        self.is_decoded = is_decoded
        self._parts = np.array(here, np.int64)
        self._sizes = np.array([store.room(number) for number in here], np.int64)

    def least_used(self, uses: NDArray[np.float32], size: int) -> int | None:
        """The part that was used least in a place of `size` bytes or little more; None where there is no such place."""
        fits = (self._sizes >= size) & (self._sizes <= size + size // 4)
        if not fits.any():
            return None
        return int(self._parts[np.where(fits, uses[self._parts], np.inf).argmin()])

    def replace(self, old: int, new: int) -> None:
        """Put a part into the place of another."""
        self._parts[self._parts == old] = new
