"""Requests that wait: clients take turns, each with its requests in order."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict, deque
from typing import TypeAlias

from spqfmt import loaders
from spqfmt.serving.requests import Question, RequestError

Event: TypeAlias = str | loaders.Generation | RequestError
"""A piece of text, and last how it ended."""


class Job:
    """A request in the queue or in work. Events come in the loop that made it."""

    def __init__(self, asked: Question, client: str) -> None:
        self.asked, self.client = asked, client
        self._loop = asyncio.get_running_loop()
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Nobody waits any more: its turn is skipped, or its answer ends at the next token."""
        self._cancelled.set()

    @property
    def is_cancelled(self) -> bool:
        """Whether nobody waits for it."""
        return self._cancelled.is_set()

    def tell(self, event: Event) -> None:
        """Hand an event over, from any thread."""
        try:
            self._loop.call_soon_threadsafe(self.events.put_nowait, event)
        except RuntimeError:
            # The loop has ended, and with it whoever waited.
            self.cancel()


def ending() -> RequestError:
    """What whoever waits is told when the server ends."""
    return RequestError("the server is ending", code="ending", status=503)


class Turns:
    """The queue of a server. What is taken from it counts as in work until `done`. Thread-safe."""

    def __init__(self, most_waiting: int) -> None:
        self._most_waiting = most_waiting
        self._waiting: OrderedDict[str, deque[Job]] = OrderedDict()
        self._in_work: set[Job] = set()
        # Its lock may be taken twice, as a handler of signals does that comes in between.
        self._changed = threading.Condition()
        self.is_closed = False

    def put(self, job: Job) -> None:
        """Put a job behind its client's others. Raises RequestError where the queue is full."""
        with self._changed:
            self._forget_cancelled()
            if self.is_closed:
                raise ending()
            if self._n_waiting() >= self._most_waiting:
                raise RequestError("too many requests are waiting; try again later", code="busy", status=503)
            self._waiting.setdefault(job.client, deque()).append(job)
            self._changed.notify()

    def take(self, *, wait: bool) -> Job | None:
        """The job whose turn it is; None where there is none and `wait` is false, and once the queue is closed."""
        with self._changed:
            self._forget_cancelled()
            while wait and not self._waiting and not self.is_closed:
                self._changed.wait()
                self._forget_cancelled()
            if self.is_closed or not self._waiting:
                return None
            client, jobs = self._waiting.popitem(last=False)
            job = jobs.popleft()
            if jobs:
                # Behind all others that wait.
                self._waiting[client] = jobs
            self._in_work.add(job)
            return job

    def done(self, job: Job, event: Event) -> None:
        """Tell how a job that was taken ended."""
        with self._changed:
            self._in_work.discard(job)
            job.tell(ending() if self.is_closed and job.is_cancelled else event)

    def close(self) -> None:
        """Take no more jobs and cancel all; who waits is told. It waits for nothing."""
        with self._changed:
            self.is_closed = True
            for job in [job for jobs in self._waiting.values() for job in jobs]:
                job.tell(ending())
                job.cancel()
            for job in self._in_work:
                job.cancel()
            self._changed.notify()

    @property
    def n_waiting(self) -> int:
        """Jobs that nobody works at yet."""
        with self._changed:
            self._forget_cancelled()
            return self._n_waiting()

    @property
    def n_in_work(self) -> int:
        """Jobs that were taken and are not done."""
        with self._changed:
            return len(self._in_work)

    def _n_waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    def _forget_cancelled(self) -> None:
        for client in list(self._waiting):
            kept = deque(job for job in self._waiting[client] if not job.is_cancelled)
            if kept:
                self._waiting[client] = kept
            else:
                del self._waiting[client]
