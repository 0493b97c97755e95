"""One thread that answers. Answers that are under way take each step together, where the model allows it."""

from __future__ import annotations

import sys
import threading
from dataclasses import replace
from typing import Any

from spqfmt import loaders
from spqfmt.errors import SpqError, is_out_of_memory
from spqfmt.kernels.pages import give_back
from spqfmt.loaders.answering import Answering
from spqfmt.loaders.together import can_step_together, step
from spqfmt.serving.requests import RequestError
from spqfmt.serving.waiting import Event, Job, Turns

_ANSWERS_BETWEEN = 16
"""After so many, memory that was freed goes back to the system: caches of all lengths leave gaps that add up."""


class Worker:
    """Answers jobs with one model, up to `most_at_once` at a time.

    One at a time is what any model can; for more it is tried first whether this one can.
    """

    def __init__(self, model: Any, tokenizer: Any, *, most_waiting: int, most_at_once: int = 1) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._turns = Turns(most_waiting)
        self._most_at_once = most_at_once
        self._n_done = 0
        self._thread = threading.Thread(target=self._work, name="spqfmt-serve", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Put a job into the queue. Raises RequestError where it is full."""
        self._turns.put(job)

    @property
    def n_waiting(self) -> int:
        """Jobs that nobody works at yet."""
        return self._turns.n_waiting

    @property
    def n_in_work(self) -> int:
        """Jobs whose answers are under way."""
        return self._turns.n_in_work

    def stop(self) -> None:
        """Take no more jobs and end all; who waits is told. It waits for nothing: a handler of signals may call it."""
        self._turns.close()

    def close(self) -> None:
        """End all jobs, and the thread with them."""
        self.stop()
        self._thread.join()

    def _work(self) -> None:
        if self._most_at_once > 1 and can_step_together(self._model):
            self._work_together()
            return
        while (job := self._turns.take(wait=True)) is not None:
            try:
                self._done(job, self._generate(job))
            except Exception as error:  # noqa: BLE001  # one request shall not end the server
                self._done(job, _said(error))

    def _done(self, job: Job, event: Event) -> None:
        self._turns.done(job, event)
        self._n_done += 1
        if self._n_done % _ANSWERS_BETWEEN == 0:
            give_back()

    def _generate(self, job: Job) -> loaders.Generation:
        ids, sampling = self._read(job)
        return loaders.generate(
            self._model,
            self._tokenizer,
            ids,
            sampling,
            write=job.tell,
            cancelled=lambda: job.is_cancelled,
        )

    def _work_together(self) -> None:
        under_way: dict[Job, Answering] = {}
        while True:
            job = None
            if len(under_way) < self._most_at_once:
                # One prompt at most between two steps: whoever is being answered waits for each.
                job = self._turns.take(wait=not under_way)
                if job is None and not under_way:
                    return
            if job is not None:
                self._begin(job, under_way)
            self._step(under_way)

    def _begin(self, job: Job, under_way: dict[Job, Answering]) -> None:
        try:
            ids, sampling = self._read(job)
            answering = Answering(
                self._model,
                self._tokenizer,
                ids,
                sampling,
                write=job.tell,
                cancelled=lambda: job.is_cancelled,
            )
            answering.begin()
        except Exception as error:  # noqa: BLE001
            self._done(job, _said(error))
            return
        under_way[job] = answering
        self._end_those_over(under_way)

    def _step(self, under_way: dict[Job, Answering]) -> None:
        """A token more for each, and the end of those that are over."""
        if not under_way:
            return
        answers = list(under_way.values())
        try:
            logits = step(self._model, [a.token for a in answers], [a.cache for a in answers])
        except Exception as error:  # noqa: BLE001
            said = _said(error)
            for job in under_way:
                self._done(job, said)
            under_way.clear()
            return
        for number, (job, answering) in enumerate(list(under_way.items())):
            try:
                answering.take(logits[number : number + 1])
            except Exception as error:  # noqa: BLE001
                del under_way[job]
                self._done(job, _said(error))
        self._end_those_over(under_way)

    def _end_those_over(self, under_way: dict[Job, Answering]) -> None:
        for job in [job for job, answering in under_way.items() if answering.is_over]:
            self._done(job, under_way.pop(job).generation())

    def _read(self, job: Job) -> tuple[Any, loaders.Sampling]:
        """Token ids of a prompt, and how to go on. Raises RequestError where there is no room for an answer."""
        prompt, sampling = job.asked.prompt, job.asked.sampling
        chat = not isinstance(prompt, str)
        ids = loaders.encode_prompt(
            self._tokenizer, prompt, chat=chat, ended=self._model.config.is_encoder_decoder
        )
        limit = loaders.window_limit(self._model)
        if limit is None:
            return ids, sampling
        room = limit - ids.shape[1]
        if room <= 0:
            raise RequestError(
                f"the prompt has {ids.shape[1]} tokens, the model takes {limit} with its answer",
                param="messages" if chat else "prompt",
                code="context_length_exceeded",
            )
        return ids, replace(sampling, max_new_tokens=min(sampling.max_new_tokens, room))


def _said(error: Exception) -> RequestError:
    """What a client is told of what went wrong."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, SpqError):
        return RequestError(" ".join(str(error).split()))
    if is_out_of_memory(error):
        return RequestError("not enough memory for this request", status=503)
    sys.stderr.write(f"spqfmt: unexpected {type(error).__name__}: {' '.join(str(error).split())}\n")
    return RequestError("an error in the server; its own output says more", status=500)
