"""An answer under way: what generate of transformers is asked for, what comes of it, and its steps one by one."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from spqfmt.calibration.tokens import check_ids
from spqfmt.errors import SpqError, foreign_errors
from spqfmt.importers._quiet import quiet_transformers
from spqfmt.loaders.evaluate import window_limit
from spqfmt.loaders.sampling import Sampling, StopCut
from spqfmt.loaders.settings import generation_settings
from spqfmt.models.caches import cache_of

_MORE_TOKENS = 16
"""Tokens that are looked at beside one for each character of a stop text: some have no text of their own."""


@dataclass(frozen=True)
class Generation:
    """What was generated, and how fast. Seconds count from the call to the last token."""

    text: str
    n_prompt_tokens: int
    n_new_tokens: int
    first_token_seconds: float
    total_seconds: float
    finish: str = "stop"
    """Why it ended: "stop" at an end that the model or a stop text made, "length", or "cancelled"."""

    @property
    def tokens_per_second(self) -> float:
        """Rate after the first token, which pays for the prompt; 0 where there is none after it."""
        seconds = self.total_seconds - self.first_token_seconds
        return (self.n_new_tokens - 1) / seconds if self.n_new_tokens > 1 and seconds > 0 else 0.0


class Streamer(transformers.TextStreamer):  # type: ignore[misc] # transformers is untyped here
    """Hands on words as soon as later tokens can no longer change them."""

    def __init__(self, tokenizer: Any, write: Callable[[str], None], sampling: Sampling) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._write = write
        self._sampling = sampling
        self._cut = StopCut(sampling.stop)
        self._last: deque[int] = deque(maxlen=sampling.longest_stop + _MORE_TOKENS)
        self.is_stopped = False
        self.pieces: list[str] = []
        self.first_token_time: float | None = None
        self.n_new_tokens = -1

    def put(self, value: torch.Tensor) -> None:
        """Called with the prompt first, then with every token."""
        self.n_new_tokens += 1
        if self.n_new_tokens == 1:
            self.first_token_time = time.perf_counter()
        super().put(value)
        if self.n_new_tokens and self._sampling.stop:
            # Words are handed on late, and a stop text ends the answer at once.
            self._last.extend(value.flatten().tolist())
            text = self.tokenizer.decode(list(self._last), skip_special_tokens=True)
            self.is_stopped |= any(stop in text for stop in self._sampling.stop)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Take text that will not change any more, and show it."""
        text = self._cut.feed(text, is_last=stream_end)
        self.pieces.append(text)
        if text:
            self._write(text)


class Ending(transformers.StoppingCriteria):  # type: ignore[misc]
    """Ends an answer that nobody wants any more, or at a stop text."""

    def __init__(self, streamer: Streamer, cancelled: Callable[[], bool]) -> None:
        self._streamer, self._cancelled = streamer, cancelled
        self.was_cancelled = False

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Whether each answer ends here."""
        self.was_cancelled = self.was_cancelled or self._cancelled()
        is_over = self.was_cancelled or self._streamer.is_stopped
        return torch.full((input_ids.shape[0],), is_over, dtype=torch.bool, device=input_ids.device)


@dataclass(frozen=True)
class Wanted:
    """One answer as transformers' generate is asked for it. `ids` [1, n]."""

    model: Any
    tokenizer: Any
    ids: torch.Tensor
    sampling: Sampling
    settings: transformers.GenerationConfig
    streamer: Streamer
    ending: Ending

    @classmethod
    def of(
        cls,
        model: Any,
        tokenizer: Any,
        ids: torch.Tensor,
        sampling: Sampling,
        *,
        write: Callable[[str], None],
        cancelled: Callable[[], bool],
    ) -> Wanted:
        """Check what can be checked before anything is computed. Raises SpqError as `generate` says."""
        check_ids(model, tokenizer, ids)
        ids = ids.to(model.device)
        streamer = Streamer(tokenizer, write, sampling)
        n_new = min(sampling.max_new_tokens, _room(model, ids.shape[1]) or sampling.max_new_tokens)
        with _explained(model, sampling), quiet_transformers():
            settings = generation_settings(
                model,
                tokenizer,
                temperature=sampling.temperature,
                max_new_tokens=n_new,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
            )
        return cls(model, tokenizer, ids, sampling, settings, streamer, Ending(streamer, cancelled))

    def generate(self, **more: Any) -> Any:
        """Call the model's generate."""
        with (
            _explained(self.model, self.sampling),
            quiet_transformers(),
            _generation_config(self.model, self.settings),
            torch.inference_mode(),
        ):
            return self.model.generate(
                self.ids,
                attention_mask=torch.ones_like(self.ids),
                generation_config=self.settings,
                streamer=self.streamer,
                tokenizer=self.tokenizer,
                stopping_criteria=transformers.StoppingCriteriaList([self.ending]),
                **more,
            )

    def generation(self, start: float, last: int) -> Generation:
        """What came of it since `start`, with `last` as its last token."""
        end_time = time.perf_counter()
        streamer = self.streamer
        return Generation(
            text="".join(streamer.pieces),
            n_prompt_tokens=self.ids.shape[1],
            n_new_tokens=streamer.n_new_tokens,
            first_token_seconds=(streamer.first_token_time or end_time) - start,
            total_seconds=end_time - start,
            finish=_finish(streamer, self.ending, self.settings, last),
        )


class Answering:
    """An answer of which whoever holds it does each step, so that steps of several answers can be one.

    `token` is its last one, which is no part of `cache` yet; both are there once `read` has all of the prompt. Tokens
    are chosen as `generate` chooses them: from the same logits come the same, at random too, for numbers of a seed are
    its own. Raises what `generate` does.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        ids: torch.Tensor,
        sampling: Sampling,
        *,
        write: Callable[[str], None] = lambda text: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        self._start = time.perf_counter()
        self._wanted = Wanted.of(model, tokenizer, ids, sampling, write=write, cancelled=cancelled)
        self._how: _How = self._wanted.generate(custom_generate=_prepared)
        self._ids = self._how.input_ids
        self._random = torch.Generator(model.device).manual_seed(sampling.seed)
        self._n_read = 0
        self.cache: Any = None
        self.token = -1
        self.is_over = False

    def read(self, most_tokens: int | None = None) -> None:
        """Read so many more tokens of the prompt at most, None: all, and choose the first token behind its last one."""
        model, n = self._wanted.model, self._ids.shape[1]
        end = n if most_tokens is None else min(n, self._n_read + most_tokens)
        inputs = dict(self._how.inputs)
        if most_tokens is not None and n > most_tokens:
            # As generate does it with a prefill_chunk_size.
            for name, first in (("attention_mask", 0), ("position_ids", self._n_read)):
                if inputs.get(name) is not None:
                    inputs[name] = inputs[name][..., first:end]
        with _explained(model, self._wanted.sampling), torch.inference_mode():
            inputs = model.prepare_inputs_for_generation(
                self._ids[:, self._n_read : end], is_first_iteration=True, **inputs
            )
            outputs = model(**inputs, return_dict=True)
            self.cache = cache_of(outputs)
        self._n_read = end
        if end == n:
            self.take(outputs.logits[:, -1])

    @property
    def is_reading(self) -> bool:
        """Whether some of the prompt is not read yet."""
        return self.token < 0

    def take(self, logits: torch.Tensor) -> None:
        """Choose the next token from `logits` [1, n_tokens] and show what text it makes; `is_over` may be true then."""
        how, wanted = self._how, self._wanted
        with _explained(wanted.model, wanted.sampling), torch.inference_mode():
            logits = logits.to(copy=True, dtype=torch.float32, device=self._ids.device)
            scores = how.processors(self._ids, logits)
            if how.is_random:
                token = torch.multinomial(scores.softmax(-1), 1, generator=self._random)
            else:
                token = scores.argmax(-1, keepdim=True)
            self.token = int(token)
            self._ids = torch.cat([self._ids, token], -1)
            is_over = bool(how.criteria(self._ids, None).all())
            wanted.streamer.put(token[0].cpu())
            self.is_over = is_over or wanted.streamer.is_stopped
            if self.is_over:
                wanted.streamer.end()

    def generation(self) -> Generation:
        """What came of it, once it is over."""
        return self._wanted.generation(self._start, self.token)


@dataclass(frozen=True)
class _How:
    """What generate has made ready for its loop."""

    input_ids: torch.Tensor
    processors: Any
    criteria: Any
    is_random: bool
    inputs: dict[str, Any]


def _prepared(
    model: Any,
    input_ids: torch.Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: transformers.GenerationConfig,
    streamer: Any = None,
    tokenizer: Any = None,
    synced_gpus: Any = None,
    assistant_model: Any = None,
    **inputs: Any,
) -> _How:
    """Stand in for generate's loop: nothing is computed yet."""
    return _How(
        input_ids=input_ids,
        processors=logits_processor,
        criteria=stopping_criteria,
        is_random=generation_config.do_sample,
        inputs=inputs,
    )


@contextmanager
def _explained(model: Any, sampling: Sampling) -> Iterator[None]:
    def explained(reason: str) -> SpqError:
        advice = "; temperature 0 goes without its generation config" if sampling.temperature > 0 else ""
        return SpqError(f"{type(model).__name__} cannot generate: {reason}{advice}")

    with foreign_errors(explained):
        yield


def _finish(streamer: Streamer, ending: Ending, settings: transformers.GenerationConfig, last: int) -> str:
    if streamer.is_stopped:
        return "stop"
    if ending.was_cancelled:
        return "cancelled"
    ends = settings.eos_token_id
    has_ended = last in (ends if isinstance(ends, list) else [ends])
    return "length" if streamer.n_new_tokens >= settings.max_new_tokens and not has_ended else "stop"


def _room(model: Any, n_prompt: int) -> int | None:
    """How many tokens fit behind the prompt where positions are rows of a table; None where they are computed.

    Raises SpqError where the prompt leaves no room.
    """
    limit = window_limit(model)
    tokens = model.get_input_embeddings()
    tables = (getattr(m, "num_embeddings", None) for m in model.modules() if m is not tokens)
    # Some tables begin with a row or two for padding.
    if limit is None or not any(rows is not None and 0 <= rows - limit <= 4 for rows in tables):
        return None
    if n_prompt >= limit:
        raise SpqError(
            f"the prompt has {n_prompt} tokens, the model takes {limit} with its answer; shorten it"
        )
    return limit if model.config.is_encoder_decoder else limit - n_prompt


@contextmanager
def _generation_config(model: Any, settings: transformers.GenerationConfig) -> Iterator[None]:
    """transformers takes what `settings` leave open from the model's own: these are the model's while this lasts."""
    own = model.generation_config
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = own
