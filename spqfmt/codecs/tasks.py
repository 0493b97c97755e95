"""Work on several threads. The codecs release the GIL; the results do not depend on the number of threads.

Whoever calls always works too, so that all gets done where the system starts no thread, and in a forked child.
"""

import atexit
import threading
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from spqfmt import systems
from spqfmt.codecs.threads import n_threads
from spqfmt.kernels.context import current, using

_In = TypeVar("_In")
_Out = TypeVar("_Out")


class Task(Generic[_Out]):
    """Work that is done once: by a helper that is free, or by whoever asks for the result before."""

    def __init__(self, work: Callable[[], _Out]) -> None:
        self._work = work
        self._taken = threading.Lock()
        self._done = threading.Event()
        self._results: list[_Out] = []
        self._error: BaseException | None = None

    def do(self) -> None:
        """Do the work, unless another thread has taken it."""
        if not self._taken.acquire(blocking=False):
            return
        try:
            self._results.append(self._work())
        except BaseException as error:  # noqa: BLE001  # raised by `result`
            self._error = error
        finally:
            del self._work
            self._done.set()

    def result(self) -> _Out:
        """Wait for the work, and return what it returned. Raises what it raised."""
        self.do()
        self._done.wait()
        if self._error is not None:
            raise self._error
        return self._results[0]


_IDLE_SECONDS = 5.0
"""How long a helper waits for a task."""


class _Helpers:
    """Up to `n` threads that take tasks from one queue. They start when there are tasks, and end some time after."""

    def __init__(self, n: int) -> None:
        self.n = n
        self._tasks: SimpleQueue[Task[Any] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._closed = False

    def offer(self, task: Task[Any]) -> None:
        """Have the task done by the first that is free; by nobody where no thread can be started."""
        with self._lock:
            if len(self._threads) < self.n and not self._closed:
                self._start()
            if self._threads:
                self._tasks.put(task)

    def _start(self) -> None:
        # As daemons they do not keep the process from ending; `_end` waits for what they are doing then.
        name = f"spqfmt-{len(self._threads)}"
        thread = threading.Thread(target=self._help, name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError:  # a limit of the system: those there are do it
            return
        self._threads.append(thread)

    def _help(self) -> None:
        while not self._closed:
            try:
                task = self._tasks.get(timeout=_IDLE_SECONDS)
            except Empty:
                if self._leave():
                    return
                continue
            if task is not None:
                task.do()
            del task  # nor keep its result while waiting for the next one

    def _leave(self) -> bool:
        """End the calling thread, unless there is a task again: none is offered to threads that have left."""
        with self._lock:
            if not self._tasks.empty():
                return False
            self._threads.remove(threading.current_thread())
            return True

    def close(self) -> list[threading.Thread]:
        """End the threads after the tasks that they are at, and return them; tasks that are left are nobody's."""
        with self._lock:
            self._closed = True
            for _ in self._threads:
                self._tasks.put(None)
            return list(self._threads)


_helpers: dict[int, _Helpers] = {}
"""All helpers by their number: callers of one context share them, and those of another have their own."""


def _helpers_of(n: int) -> _Helpers:
    # Of two threads that come first at once one loses what it made, which has no threads yet.
    return _helpers.get(n) or _helpers.setdefault(n, _Helpers(n))


@atexit.register
def _end() -> None:
    for thread in [thread for helpers in list(_helpers.values()) for thread in helpers.close()]:
        thread.join()


def _forget_threads() -> None:
    """Drop the parent's threads in a forked child: they are not here, and may hold its locks for ever."""
    _helpers.clear()


systems.at_fork(after_in_child=_forget_threads)


def submit(work: Callable[..., _Out], *arguments: object) -> Task[_Out]:
    """`work(*arguments)` on another thread if one is free before the result is asked for, in the caller's context."""
    context = current()

    def in_context() -> _Out:
        with using(context):
            return work(*arguments)

    task = Task(in_context)
    n = n_threads()
    if n > 1:
        _helpers_of(n - 1).offer(task)
    return task


def side_by_side(work: Callable[[_In], _Out], items: Sequence[_In]) -> list[_Out]:
    """`work` on each item, in the order of the items. Raises what the first item that fails raises."""
    n = min(n_threads(), len(items)) if len(items) > 1 else 1
    if n < 2:
        return [work(item) for item in items]
    shared = _Shared(work, items)
    others = [submit(shared.work) for _ in range(n - 1)]
    try:
        shared.work()
    finally:
        shared.stop()
        for other in others:
            other.result()
    return shared.results()


class _Shared(Generic[_In, _Out]):
    """Items that threads take in order, so that when one fails all before it have been taken and will report."""

    def __init__(self, work: Callable[[_In], _Out], items: Sequence[_In]) -> None:
        self._work = work
        self._items = items
        self._lock = threading.Lock()
        self._next = 0
        self._results: dict[int, _Out] = {}
        self._errors: dict[int, Exception] = {}

    def work(self) -> None:
        """Take items until there are none, or one has failed."""
        while (number := self._take()) is not None:
            try:
                self._results[number] = self._work(self._items[number])
            except Exception as error:  # noqa: BLE001  # raised by `results`
                self._errors[number] = error
                self.stop()

    def _take(self) -> int | None:
        with self._lock:
            if self._next >= len(self._items):
                return None
            self._next += 1
            return self._next - 1

    def stop(self) -> None:
        """Hand out no more of the items."""
        with self._lock:
            self._next = len(self._items)

    def results(self) -> list[_Out]:
        """Those of all items, in order. Raises the first error."""
        if self._errors:
            raise self._errors[min(self._errors)]
        return [self._results[number] for number in range(len(self._items))]
