"""Reading ahead: a ring of reused buffers that other threads fill from disk while the model decodes and computes.

What is read ahead is a guess (spqfmt.loaders.foreseen) that never decides what is shown.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from spqfmt import systems
from spqfmt.codecs.base import Bytes
from spqfmt.errors import SpqError
from spqfmt.loaders.foreseen import Asked, Foreseen, Slot, SlotState
from spqfmt.loaders.packed.buffers import TakenBackError, View

Fill = Callable[[int, Bytes], None]
"""(part number, buffer): read the part into the buffer, checked. Several threads call it at once."""

_LOOK_SECONDS = 0.5
"""How often one who waits looks whether the workers are alive."""


@dataclass(eq=False, kw_only=True)
class _RingSlot(Slot):
    buffer: Bytes
    n_waiting: int = 0
    error: BaseException | None = None
    held: View | None = None
    """A view that was taken back while an array over it is alive: the slot waits for that array to go."""


@dataclass
class _SharedRing:
    """What the workers hold: not the ring itself, so that a ring that nobody uses any more can go."""

    fill: Fill
    sizes: Sequence[int]
    lock: threading.RLock = field(default_factory=threading.RLock)
    queue: list[_RingSlot] = field(default_factory=list)
    closed: bool = False

    def __post_init__(self) -> None:
        # Two, so that a part that is ready does not wake the workers, nor a queued one those who wait for others.
        self.work = threading.Condition(self.lock)
        self.change = threading.Condition(self.lock)


class Ring:
    """`buffers` for parts of `sizes`, first used in `order`. Any thread may lend."""

    def __init__(
        self, sizes: Sequence[int], order: Sequence[int], buffers: Sequence[Bytes], n_workers: int, fill: Fill
    ) -> None:
        self._shared = _SharedRing(fill, sizes)
        self._foreseen = self._expected([_RingSlot(buffer=buffer) for buffer in buffers], order)
        self._n_workers = n_workers
        self._threads: list[threading.Thread] = []
        _rings.add(self)
        with self._shared.lock:
            self._start()
            self._prefetch()

    def _expected(self, slots: Sequence[_RingSlot], order: Sequence[int]) -> Foreseen[_RingSlot]:
        """What says which parts come next."""
        return Foreseen(slots, order)

    def _start(self) -> None:
        """Start as many workers as the system lets one; without any, whoever asks for a part reads it."""
        for number in range(self._n_workers):
            name = f"spqfmt-ring-{number}"
            thread = threading.Thread(target=_work, args=(self._shared,), name=name, daemon=True)
            try:
                thread.start()
            except RuntimeError:
                break
            self._threads.append(thread)

    def forget_workers(self) -> None:
        """Drop the workers in a forked child: they are not here, may hold the lock, and have filled nothing whole."""
        shared = self._shared
        self._shared = _SharedRing(shared.fill, shared.sizes, closed=shared.closed)
        self._threads = []
        with self._shared.lock:
            for slot in self._foreseen.slots:
                slot.n_waiting = 0
                if slot.state in {SlotState.QUEUED, SlotState.FILLING}:
                    self._free(slot)

    def close(self) -> None:
        """Stop the threads, after what they are reading; whoever waits, or lends later, gets SpqError."""
        with self._shared.lock:
            self._shared.closed = True
            self._shared.work.notify_all()
            self._shared.change.notify_all()
        for thread in self._threads:
            # A collection of garbage may close a ring wherever it happens to run.
            if thread is not threading.current_thread():
                thread.join()

    @contextmanager
    def lend(self, part: int, name: str) -> Iterator[View]:
        """The bytes of a part while the context lasts. Raises what reading it raised."""
        slot = self._obtain(part)
        view = View(name, slot.buffer[: self._shared.sizes[part]])
        try:
            yield view
        finally:
            with self._shared.lock:
                slot.held = None if view.take_back() else view
                self._free(slot)
                self._prefetch()

    def _obtain(self, part: int) -> _RingSlot:
        shared = self._shared
        with shared.lock:
            if not self._threads and not shared.closed:
                self._start()
            self._foreseen.used(part)
            slot = self._find(part) or self._claim(part)
            slot.n_waiting += 1
            try:
                while slot.state in {SlotState.QUEUED, SlotState.FILLING, SlotState.LENT}:
                    if slot.state is SlotState.QUEUED and not self._threads:
                        self._fill(slot)
                    else:
                        self._wait()
            finally:
                slot.n_waiting -= 1
            if slot.error is not None:
                error, slot.error = slot.error, None
                self._free(slot)
                raise error
            slot.state = SlotState.LENT
            self._prefetch()
            return slot

    def _fill(self, slot: _RingSlot) -> None:
        self._shared.queue.remove(slot)
        _fill(self._shared, slot)

    def _find(self, part: int) -> _RingSlot | None:
        """The slot that has or will have the part, and that no other thread has or awaits."""
        for slot in self._foreseen.holders(part):
            if slot.n_waiting or slot.state is SlotState.LENT:
                continue
            if slot.error is None:
                return slot
            # It failed when nobody had asked yet: what was wrong then may be right now.
            self._free(slot)
        return None

    def _claim(self, part: int) -> _RingSlot:
        """A slot for a part that was not foreseen, first in the queue."""
        while True:
            slot = self._available() or self._surplus()
            if slot is not None:
                self._enqueue(slot, part, 0)
                return slot
            self._wait()

    def _available(self) -> _RingSlot | None:
        for slot in self._foreseen.free():
            if slot.held is not None and slot.held.take_back():
                slot.held = None
            if slot.held is None:
                return slot
        return None

    def _surplus(self) -> _RingSlot | None:
        """A slot that awaits or holds what nobody has asked for; the one that is due last."""
        for slot in self._foreseen.surplus(SlotState.QUEUED, SlotState.READY):
            if not slot.n_waiting:
                if slot in self._shared.queue:
                    self._shared.queue.remove(slot)
                self._free(slot)
                return slot
        return None

    def _enqueue(self, slot: _RingSlot, part: int, place: int) -> None:
        slot.part, slot.state, slot.error = part, SlotState.QUEUED, None
        self._shared.queue.insert(place, slot)
        self._shared.work.notify()

    def _prefetch(self) -> None:
        """Queue what comes after the part used last, as far as there are free slots."""
        if self._shared.closed:
            return
        for part in self._foreseen.coming(len(self._foreseen.slots) - 1):
            if any(self._foreseen.holders(part)):
                continue
            slot = self._available()
            if slot is None:
                return
            self._enqueue(slot, part, len(self._shared.queue))

    def _free(self, slot: _RingSlot) -> None:
        slot.clear()
        slot.error = None
        self._shared.change.notify_all()

    def _wait(self) -> None:
        """Wait for any change; raise instead of waiting for what cannot come."""
        shared = self._shared
        if shared.closed:
            raise SpqError("the model was closed")
        if self._threads and not any(thread.is_alive() for thread in self._threads):
            raise SpqError("the threads that read weights have died; load the model again")
        lent_or_coming = {SlotState.QUEUED, SlotState.FILLING, SlotState.LENT}
        if all(slot.held is not None and slot.state not in lent_or_coming for slot in self._foreseen.slots):
            names = ", ".join(slot.held.name for slot in self._foreseen.slots if slot.held is not None)
            raise TakenBackError(f"arrays over buffers that were taken back are still held: {names}")
        shared.change.wait(_LOOK_SECONDS)


class AskedRing(Ring):
    """A ring that guesses nothing: it reads what it is asked for, and no more."""

    _foreseen: Asked[_RingSlot]

    def _expected(self, slots: Sequence[_RingSlot], order: Sequence[int]) -> Asked[_RingSlot]:
        return Asked(slots)

    def _available(self) -> _RingSlot | None:
        """A free slot, or one with what nobody wants any more."""
        for slot in list(self._foreseen.surplus(SlotState.READY)):
            if not slot.n_waiting and not self._foreseen.wants(slot.part):
                self._free(slot)
        return super()._available()

    def ask(self, parts: Sequence[int]) -> None:
        """Begin to read these parts, as far as there are free slots; those behind follow as slots become free."""
        with self._shared.lock:
            self._foreseen.ask(parts)
            self._prefetch()

    def forget(self, parts: Sequence[int]) -> None:
        """Do not read, or keep, what was asked for and not lent."""
        with self._shared.lock:
            self._foreseen.forget(parts)
            for slot in list(self._foreseen.surplus(SlotState.QUEUED)):
                if not slot.n_waiting and not self._foreseen.wants(slot.part):
                    self._shared.queue.remove(slot)
                    self._free(slot)
            self._prefetch()

    def first(self, parts: Sequence[int]) -> int:
        """The place in `parts` of the first one that is read; waits for one. 0 where nothing is being read."""
        shared = self._shared
        while True:
            with shared.lock:
                coming = False
                for place, part in enumerate(parts):
                    for slot in self._foreseen.holders(part):
                        if slot.state is SlotState.READY:
                            return place
                        coming |= slot.state is SlotState.FILLING
                        coming |= slot.state is SlotState.QUEUED and bool(self._threads)
                if not coming:
                    return 0
                self._wait()


def _work(shared: _SharedRing) -> None:
    """Fill what is queued until the ring is closed."""
    while True:
        with shared.lock:
            while not shared.queue and not shared.closed:
                shared.work.wait()
            if shared.closed:
                return
            slot = shared.queue.pop(0)
            slot.state = SlotState.FILLING
        _fill(shared, slot)


def _fill(shared: _SharedRing, slot: _RingSlot) -> None:
    try:
        shared.fill(slot.part, slot.buffer[: shared.sizes[slot.part]])
    except Exception as error:  # noqa: BLE001  # raised again by the one who asked for the part
        slot.error = error
    except BaseException as error:
        slot.error = SpqError(f"a thread that reads weights died: {type(error).__name__}")
        raise
    finally:
        with shared.lock:
            slot.state = SlotState.READY
            shared.change.notify_all()


_rings: weakref.WeakSet[Ring] = weakref.WeakSet()


def _forget_workers() -> None:
    for ring in _rings:
        ring.forget_workers()


systems.at_fork(after_in_child=_forget_workers)
