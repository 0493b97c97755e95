"""Reading ahead: a ring of reused buffers that other threads fill from disk while the model decodes and computes.

A slot is free, being filled, ready, or lent. Parts are read ahead in the order in which they were used the last time.
That order is a guess and never decides what is shown: a slot is lent only for the part that it was filled with.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum

from spqfmt.codecs.base import Bytes
from spqfmt.errors import SpqError
from spqfmt.loaders.packed.buffers import TakenBackError, View

Fill = Callable[[int, Bytes], None]
"""(part number, buffer): read the part into the buffer, checked. Several threads call it at once."""

_LOOK_SECONDS = 0.5
"""How often one who waits looks whether the workers are alive."""


class _State(Enum):
    FREE = 0
    QUEUED = 1
    FILLING = 2
    READY = 3
    LENT = 4


@dataclass(eq=False)
class _Slot:
    buffer: Bytes
    state: _State = _State.FREE
    part: int = -1
    n_waiting: int = 0
    error: BaseException | None = None
    held: View | None = None
    """A view that was taken back while an array over it is alive: the slot waits for that array to go."""


@dataclass
class _SharedRing:
    """What the workers hold: not the ring itself, so that a ring that nobody uses any more can go."""

    slots: list[_Slot]
    fill: Fill
    sizes: Sequence[int]
    lock: threading.RLock = field(default_factory=threading.RLock)
    queue: list[_Slot] = field(default_factory=list)
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
        self._shared = _SharedRing([_Slot(buffer) for buffer in buffers], fill, sizes)
        self._next = {part: order[(i + 1) % len(order)] for i, part in enumerate(order)}
        self._last: int | None = order[-1] if order else None
        self._n_workers = n_workers
        self._threads: list[threading.Thread] = []
        _rings.add(self)
        with self._shared.lock:
            self._start()
            self._prefetch()

    def _start(self) -> None:
        """As many workers as the system starts; without one, whoever asks for a part reads it."""
        for number in range(self._n_workers):
            name = f"spqfmt-ring-{number}"
            thread = threading.Thread(target=_work, args=(self._shared,), name=name, daemon=True)
            try:
                thread.start()
            except RuntimeError:
                break
            self._threads.append(thread)

    def forget_workers(self) -> None:
        """In a forked child: they are not here, one may hold the lock for ever, and what they filled is not whole."""
        shared = self._shared
        self._shared = _SharedRing(shared.slots, shared.fill, shared.sizes, closed=shared.closed)
        self._threads = []
        with self._shared.lock:
            for slot in shared.slots:
                slot.n_waiting = 0
                if slot.state in {_State.QUEUED, _State.FILLING}:
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

    def _obtain(self, part: int) -> _Slot:
        shared = self._shared
        with shared.lock:
            if not self._threads and not shared.closed:
                self._start()
            if self._last is not None:
                self._next[self._last] = part
            self._last = part
            slot = self._find(part) or self._claim(part)
            slot.n_waiting += 1
            try:
                while slot.state in {_State.QUEUED, _State.FILLING, _State.LENT}:
                    if slot.state is _State.QUEUED and not self._threads:
                        self._fill(slot)
                    else:
                        self._wait()
            finally:
                slot.n_waiting -= 1
            if slot.error is not None:
                error, slot.error = slot.error, None
                self._free(slot)
                raise error
            slot.state = _State.LENT
            self._prefetch()
            return slot

    def _fill(self, slot: _Slot) -> None:
        self._shared.queue.remove(slot)
        _fill(self._shared, slot)

    def _find(self, part: int) -> _Slot | None:
        """The slot that has or will have the part, and that no other thread has or awaits."""
        for slot in self._shared.slots:
            if slot.part != part or slot.n_waiting or slot.state in {_State.FREE, _State.LENT}:
                continue
            if slot.error is None:
                return slot
            # It failed when nobody had asked yet: what was wrong then may be right now.
            self._free(slot)
        return None

    def _claim(self, part: int) -> _Slot:
        """A slot for a part that was not foreseen, first in the queue."""
        while True:
            slot = self._available() or self._surplus()
            if slot is not None:
                self._enqueue(slot, part, 0)
                return slot
            self._wait()

    def _available(self) -> _Slot | None:
        for slot in self._shared.slots:
            if slot.held is not None and slot.held.take_back():
                slot.held = None
            if slot.state is _State.FREE and slot.held is None:
                return slot
        return None

    def _surplus(self) -> _Slot | None:
        """A slot that holds or awaits what nobody has asked for; the one that is due last."""
        for slot in reversed(self._shared.slots):
            if slot.state in {_State.READY, _State.QUEUED} and not slot.n_waiting:
                if slot in self._shared.queue:
                    self._shared.queue.remove(slot)
                self._free(slot)
                return slot
        return None

    def _enqueue(self, slot: _Slot, part: int, place: int) -> None:
        slot.part, slot.state, slot.error = part, _State.QUEUED, None
        self._shared.queue.insert(place, slot)
        self._shared.work.notify()

    def _prefetch(self) -> None:
        """Queue what comes after the part used last, as far as there are free slots."""
        shared = self._shared
        if shared.closed or self._last is None:
            return
        coming, part = [], self._last
        for _ in range(len(shared.slots) - 1):
            part = self._next[part]
            coming.append(part)
        for part in coming:
            if any(slot.part == part and slot.state is not _State.FREE for slot in shared.slots):
                continue
            slot = self._available()
            if slot is None:
                return
            self._enqueue(slot, part, len(shared.queue))

    def _free(self, slot: _Slot) -> None:
        slot.part, slot.state, slot.error = -1, _State.FREE, None
        self._shared.change.notify_all()

    def _wait(self) -> None:
        """Wait for any change; raise instead of waiting for what cannot come."""
        shared = self._shared
        if shared.closed:
            raise SpqError("the model was closed")
        if self._threads and not any(thread.is_alive() for thread in self._threads):
            raise SpqError("the threads that read weights have died; load the model again")
        lent_or_coming = {_State.QUEUED, _State.FILLING, _State.LENT}
        if all(slot.held is not None and slot.state not in lent_or_coming for slot in shared.slots):
            names = ", ".join(slot.held.name for slot in shared.slots if slot.held is not None)
            raise TakenBackError(f"arrays over buffers that were taken back are still held: {names}")
        shared.change.wait(_LOOK_SECONDS)


def _work(shared: _SharedRing) -> None:
    """Fill what is queued until the ring is closed."""
    while True:
        with shared.lock:
            while not shared.queue and not shared.closed:
                shared.work.wait()
            if shared.closed:
                return
            slot = shared.queue.pop(0)
            slot.state = _State.FILLING
        _fill(shared, slot)


def _fill(shared: _SharedRing, slot: _Slot) -> None:
    try:
        shared.fill(slot.part, slot.buffer[: shared.sizes[slot.part]])
    except Exception as error:  # noqa: BLE001  # raised again by the one who asked for the part
        slot.error = error
    except BaseException as error:
        slot.error = SpqError(f"a thread that reads weights died: {type(error).__name__}")
        raise
    finally:
        with shared.lock:
            slot.state = _State.READY
            shared.change.notify_all()


_rings: weakref.WeakSet[Ring] = weakref.WeakSet()


def _forget_workers() -> None:
    for ring in _rings:
        ring.forget_workers()


os.register_at_fork(after_in_child=_forget_workers)
