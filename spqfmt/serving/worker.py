"""One thread that answers. Answers that are under way take each step together, where the model allows it."""

from __future__ import annotations

import sys
import threading
from collections import deque
from dataclasses import replace
from typing import Any

from spqfmt import loaders
from spqfmt.errors import SpqError, is_out_of_memory
from spqfmt.kernels.pages import give_back
from spqfmt.loaders.answering import Answering
from spqfmt.loaders.together import can_read_in_pieces, can_step_together, step
from spqfmt.serving.requests import RequestError
from spqfmt.serving.waiting import Event, Job, Turns

PIECE_TOKENS = 256
"""What is read of a prompt between two steps: whoever is being answered waits for it."""
_BYTES_A_TOKEN = 32
"""No text has more on average: prompts with more are not cut into tokens, which would take seconds."""
_ANSWERS_BETWEEN = 16
"""After so many, memory that was freed goes back to the system: caches of all lengths leave gaps that add up."""


class Worker:
    """Answers jobs with one model, up to `most_at_once` at a time.

    One at a time is what any model can; for more it is tried first whether this one can. `most_prompt`: tokens that a
    prompt may have; None: what the model takes.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        most_waiting: int,
        most_at_once: int = 1,
        most_prompt: int | None = None,
    ) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._most_prompt = most_prompt
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
                self._done(job, what_is_said(error))

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
        reading: deque[tuple[Job, Answering]] = deque()
        piece = PIECE_TOKENS if can_read_in_pieces(self._model) else None
        while True:
            job, is_idle = None, not under_way and not reading
            if len(under_way) + len(reading) < self._most_at_once:
                job = self._turns.take(wait=is_idle)
                if job is None and is_idle:
                    return
            if job is not None:
                self._begin(job, reading)
            # A piece of one prompt at most between two steps, and of each in turn: a short one is soon read.
            if reading:
                self._read_on(*reading.popleft(), piece, reading=reading, under_way=under_way)
            self._step(under_way)

    def _begin(self, job: Job, reading: deque[tuple[Job, Answering]]) -> None:
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
        except Exception as error:  # noqa: BLE001
            self._done(job, what_is_said(error))
            return
        reading.append((job, answering))

    def _read_on(
        self,
        job: Job,
        answering: Answering,
        n_tokens: int | None,
        *,
        reading: deque[tuple[Job, Answering]],
        under_way: dict[Job, Answering],
    ) -> None:
        """Read some more of a prompt, whose answer is under way then or waits for its next turn to be read."""
        if job.is_cancelled:
            self._done(job, RequestError("cancelled"))
            return
        try:
            answering.read(n_tokens)
        except Exception as error:  # noqa: BLE001
            self._done(job, what_is_said(error))
            return
        if answering.is_reading:
            reading.append((job, answering))
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
            said = what_is_said(error)
            for job in under_way:
                self._done(job, said)
            under_way.clear()
            return
        for number, (job, answering) in enumerate(list(under_way.items())):
            try:
                answering.take(logits[number : number + 1])
            except Exception as error:  # noqa: BLE001
                del under_way[job]
                self._done(job, what_is_said(error))
        self._end_those_over(under_way)

    def _end_those_over(self, under_way: dict[Job, Answering]) -> None:
        for job in [job for job, answering in under_way.items() if answering.is_over]:
            self._done(job, under_way.pop(job).generation())

    def _read(self, job: Job) -> tuple[Any, loaders.Sampling]:
        """Token ids of a prompt, and how to go on. Raises RequestError where there is no room for an answer."""
        prompt, sampling = job.asked.prompt, job.asked.sampling
        chat = not isinstance(prompt, str)
        texts = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
        n_bytes = sum(len(text.encode()) for text in texts)
        self._check_length(f"{n_bytes} bytes", n_bytes // _BYTES_A_TOKEN, chat=chat)
        ids = loaders.encode_prompt(
            self._tokenizer, prompt, chat=chat, ended=self._model.config.is_encoder_decoder
        )
        n_tokens = ids.shape[1]
        self._check_length(f"{n_tokens} tokens", n_tokens, chat=chat)
        limit = loaders.window_limit(self._model)
        if limit is None:
            return ids, sampling
        return ids, replace(sampling, max_new_tokens=min(sampling.max_new_tokens, limit - n_tokens))

    def _check_length(self, length: str, n_tokens: int, *, chat: bool) -> None:
        """Raise RequestError for a prompt of so many tokens or more, where that is more than is taken."""
        limit = loaders.window_limit(self._model)
        bound = ""
        if limit is not None and n_tokens >= limit:
            bound = f"the model takes {limit} tokens with its answer"
        elif self._most_prompt is not None and n_tokens > self._most_prompt:
            bound = f"at most {self._most_prompt} tokens are read here"
        if bound:
            raise RequestError(
                f"the prompt has {length}, {bound}",
                param="messages" if chat else "prompt",
                code="context_length_exceeded",
            )


def what_is_said(error: Exception) -> RequestError:
    """What a client is told of what went wrong."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, SpqError):
        return RequestError(" ".join(str(error).split()))
    if is_out_of_memory(error):
        return RequestError("not enough memory for this request", status=503)
    sys.stderr.write(f"spqfmt: unexpected {type(error).__name__}: {' '.join(str(error).split())}\n")
    return RequestError("an error in the server; its own output says more", status=500)
