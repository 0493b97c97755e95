"""Text from a loaded model, token by token."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import transformers

from spqfmt.calibration.tokens import added_tokens, check_ids
from spqfmt.errors import SpqError, foreign_errors
from spqfmt.loaders.evaluate import window_limit
from spqfmt.loaders.sampling import Sampling, StopCut
from spqfmt.loaders.settings import generation_settings
from spqfmt.models.bounded import bounded_ids
from spqfmt.models.config import quiet_transformers

Messages: TypeAlias = Sequence[Mapping[str, str]]
"""What was said so far, each message with its `role` and `content`."""
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


class _Streamer(transformers.TextStreamer):  # type: ignore[misc] # transformers is untyped here
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


class _Cancelled(transformers.StoppingCriteria):  # type: ignore[misc]
    """Ends an answer that nobody wants any more, or at a stop text."""

    def __init__(self, streamer: _Streamer, cancelled: Callable[[], bool]) -> None:
        self._streamer, self._cancelled = streamer, cancelled
        self.was_cancelled = False

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Whether each answer ends here."""
        self.was_cancelled = self.was_cancelled or self._cancelled()
        is_over = self.was_cancelled or self._streamer.is_stopped
        return torch.full((input_ids.shape[0],), is_over, dtype=torch.bool, device=input_ids.device)


def encode_prompt(
    tokenizer: Any, prompt: str | Messages, *, chat: bool | None = None, ended: bool = False
) -> torch.Tensor:
    """Token ids [1, n] of `prompt`; as a user's message in the chat template if there is one.

    Messages, each with `role` and `content`, always go into the template.

    `chat=False` takes the prompt as it is, `chat=True` insists on a template and raises SpqError without one. So do a
    template that fails, a tokenizer that cannot cut the prompt, and either that takes without bound. What the tokenizer
    puts behind a text (EOS) is left out, since a model would see an end behind what it is to continue; `ended` keeps
    it, for an encoder.
    """
    if not isinstance(prompt, str):
        chat = True
    if chat is None:
        chat = getattr(tokenizer, "chat_template", None) is not None
    elif chat and getattr(tokenizer, "chat_template", None) is None:
        raise SpqError("the model has no chat template; give the prompt as plain text")

    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [*map(dict, prompt)]
    text = "\n".join(message["content"] for message in messages)

    def work() -> list[int]:
        if chat:
            encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        else:
            encoded = tokenizer(text)
        ids = list(encoded["input_ids"])
        after = [] if chat or ended else added_tokens(tokenizer, text)[1]
        return ids[: -len(after)] if after and ids[-len(after) :] == after else ids

    found = bounded_ids(work, text, _template_failed if chat else _tokenizer_failed)
    ids = torch.tensor([found], dtype=torch.int64)
    if ids.numel() == 0:
        raise SpqError("the prompt has no tokens; give some text")
    return ids


def _template_failed(reason: str) -> SpqError:
    return SpqError(f"the model's chat template failed: {reason}; --raw (chat=False) goes without it")


def _tokenizer_failed(reason: str) -> SpqError:
    return SpqError(f"the tokenizer cannot cut the prompt: {reason}")


def generate(
    model: Any,
    tokenizer: Any,
    prompt: str | Messages | torch.Tensor,
    sampling: Sampling | None = None,
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    seed: int = 0,
    chat: bool | None = None,
    write: Callable[[str], None] = lambda text: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Generation:
    """Continue `prompt`, a text or token ids [1, n], or answer the last of messages.

    `write` gets the text piece by piece as it comes.

    `sampling` says how; without one the three numbers do. `temperature` 0 takes the likeliest token each time; above 0
    it samples, repeatable by `seed`, and the caller's random state is left as it was. Stops at any end token that the
    model or its tokenizer names, before a stop text, or after `max_new_tokens`; where positions are rows of a table, at
    its end; and after the token in whose time `cancelled` begins to say so.

    Raises OptionError for a temperature that is none, SpqError for a prompt that the tokenizer, the chat template or
    the model cannot take.
    """
    if sampling is None:
        sampling = Sampling(max_new_tokens, temperature, seed=seed)
    temperature = sampling.temperature
    if isinstance(prompt, torch.Tensor):
        ids = prompt
    else:
        ids = encode_prompt(tokenizer, prompt, chat=chat, ended=model.config.is_encoder_decoder)
    check_ids(model, tokenizer, ids)
    ids = ids.to(model.device)
    streamer = _Streamer(tokenizer, write, sampling)
    criterion = _Cancelled(streamer, cancelled)
    n_new = min(sampling.max_new_tokens, _room(model, ids.shape[1]) or sampling.max_new_tokens)

    def explained(reason: str) -> SpqError:
        advice = "; temperature 0 goes without its generation config" if temperature > 0 else ""
        return SpqError(f"{type(model).__name__} cannot generate: {reason}{advice}")

    with foreign_errors(explained), quiet_transformers():
        settings = generation_settings(
            model,
            tokenizer,
            temperature=temperature,
            max_new_tokens=n_new,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
        )

    devices = [model.device] if model.device.type == "cuda" else []
    start = time.perf_counter()
    with (
        foreign_errors(explained),
        quiet_transformers(),
        _generation_config(model, settings),
        torch.random.fork_rng(devices=devices),
        torch.inference_mode(),
    ):
        torch.manual_seed(sampling.seed)
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=settings,
            streamer=streamer,
            tokenizer=tokenizer,
            stopping_criteria=transformers.StoppingCriteriaList([criterion]),
        )
    end_time = time.perf_counter()
    return Generation(
        text="".join(streamer.pieces),
        n_prompt_tokens=ids.shape[1],
        n_new_tokens=streamer.n_new_tokens,
        first_token_seconds=(streamer.first_token_time or end_time) - start,
        total_seconds=end_time - start,
        finish=_finish(streamer, criterion, ends=settings.eos_token_id, last=int(output[0, -1]), n_new=n_new),
    )


def _finish(
    streamer: _Streamer, criterion: _Cancelled, ends: int | list[int] | None, last: int, n_new: int
) -> str:
    if streamer.is_stopped:
        return "stop"
    if criterion.was_cancelled:
        return "cancelled"
    has_ended = last in (ends if isinstance(ends, list) else [ends])
    return "length" if streamer.n_new_tokens >= n_new and not has_ended else "stop"


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
