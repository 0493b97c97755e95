"""One thread that answers, and the queue before it: clients take turns, each with its requests in order."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, TypeAlias

from spqfmt import loaders
from spqfmt.errors import SpqError, is_out_of_memory
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


def _ending() -> RequestError:
    return RequestError("the server is ending", code="ending", status=503)


class Worker:
    """Answers jobs with one model, one at a time."""

    def __init__(self, model: Any, tokenizer: Any, *, most_waiting: int) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._most_waiting = most_waiting
        self._waiting: OrderedDict[str, deque[Job]] = OrderedDict()
        self._changed = threading.Condition()
        self._current: Job | None = None
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="spqfmt-serve", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Put a job into the queue. Raises RequestError where it is full."""
        with self._changed:
            self._forget_cancelled()
            if self._is_closed:
                raise _ending()
            if sum(map(len, self._waiting.values())) >= self._most_waiting:
                raise RequestError("too many requests are waiting; try again later", code="busy", status=503)
            self._waiting.setdefault(job.client, deque()).append(job)
            self._changed.notify()

    @property
    def n_waiting(self) -> int:
        """Jobs that nobody works at yet."""
        with self._changed:
            self._forget_cancelled()
            return sum(map(len, self._waiting.values()))

    def stop(self) -> None:
        """Take no more jobs and end all; who waits is told. It waits for nothing: a handler of signals may call it."""
        with self._changed:
            self._is_closed = True
            for job in [job for jobs in self._waiting.values() for job in jobs]:
                job.tell(_ending())
                job.cancel()
            if self._current is not None:
                self._current.cancel()
            self._changed.notify()

    def close(self) -> None:
        """End all jobs, and the thread with them."""
        self.stop()
        self._thread.join()

    def _forget_cancelled(self) -> None:
        for client in list(self._waiting):
            kept = deque(job for job in self._waiting[client] if not job.is_cancelled)
            if kept:
                self._waiting[client] = kept
            else:
                del self._waiting[client]

    def _next(self) -> Job | None:
        """The job whose turn it is; None once the worker is closed."""
        with self._changed:
            self._current = None
            self._forget_cancelled()
            while not self._waiting and not self._is_closed:
                self._changed.wait()
                self._forget_cancelled()
            if self._is_closed:
                return None
            client, jobs = self._waiting.popitem(last=False)
            self._current = jobs.popleft()
            if jobs:
                # Behind all others that wait.
                self._waiting[client] = jobs
            return self._current

    def _work(self) -> None:
        while (job := self._next()) is not None:
            event = self._answer(job)
            job.tell(_ending() if self._is_closed and job.is_cancelled else event)

    def _answer(self, job: Job) -> Event:
        try:
            prompt = job.asked.prompt
            chat = not isinstance(prompt, str)
            ids = loaders.encode_prompt(
                self._tokenizer, prompt, chat=chat, ended=self._model.config.is_encoder_decoder
            )
            limit = loaders.window_limit(self._model)
            if limit is not None and ids.shape[1] >= limit:
                raise RequestError(
                    f"the prompt has {ids.shape[1]} tokens, the model takes {limit} with its answer",
                    param="messages" if chat else "prompt",
                    code="context_length_exceeded",
                )
            return self._generate(job, ids, limit)
        except RequestError as error:
            return error
        except SpqError as error:
            return RequestError(" ".join(str(error).split()))
        except Exception as error:  # noqa: BLE001  # one request shall not end the server
            if is_out_of_memory(error):
                return RequestError("not enough memory for this request", status=503)
            sys.stderr.write(f"spqfmt: unexpected {type(error).__name__}: {' '.join(str(error).split())}\n")
            return RequestError("an error in the server; its own output says more", status=500)

    def _generate(self, job: Job, ids: Any, limit: int | None) -> loaders.Generation:
        from dataclasses import replace

        sampling = job.asked.sampling
        if limit is not None:
            room = limit - ids.shape[1]
            sampling = replace(sampling, max_new_tokens=min(sampling.max_new_tokens, room))
        write: Callable[[str], None] = job.tell
        return loaders.generate(
            self._model, self._tokenizer, ids, sampling, write=write, cancelled=lambda: job.is_cancelled
        )
