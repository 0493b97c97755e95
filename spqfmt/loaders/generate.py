"""Text from a loaded model, token by token."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch

from spqfmt.calibration.tokens import added_tokens
from spqfmt.errors import OptionError, SpqError
from spqfmt.loaders.answering import Generation, Wanted
from spqfmt.loaders.auto_memory import told_of_tokens
from spqfmt.loaders.device.graphs import as_graphs, refusal, tell
from spqfmt.loaders.sampling import Sampling
from spqfmt.models.bounded import bounded_ids

Messages: TypeAlias = Sequence[Mapping[str, str]]
"""What was said so far, each message with its `role` and `content`."""


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
    try:
        text.encode()
    except UnicodeEncodeError as error:
        # What a shell gave that is not UTF-8 comes so too.
        raise OptionError(
            f"character {error.start} of the prompt is half a character, or was not UTF-8"
        ) from None

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
    graphs: bool = False,
) -> Generation:
    """Continue `prompt`, a text or token ids [1, n], or answer the last of messages.

    `write` gets the text piece by piece as it comes.

    `sampling` says how; without one the three numbers do. `temperature` 0 takes the likeliest token each time; above 0
    it samples, repeatable by `seed`, and the caller's random state is left as it was. Stops at any end token that the
    model or its tokenizer names, before a stop text, or after `max_new_tokens`; where positions are rows of a table, at
    its end; and after the token in whose time `cancelled` begins to say so.

    With `graphs` what a token gives a GPU is recorded once and given again as a whole, with a cache that has room for
    all of the answer from the start. Where that does not go one NoGraphWarning says why. No GPU has run it
    (docs/gpu.md).

    Raises OptionError for a temperature that is none, SpqError for a prompt that the tokenizer, the chat template or
    the model cannot take.
    """
    if sampling is None:
        sampling = Sampling(max_new_tokens, temperature, seed=seed)
    if isinstance(prompt, torch.Tensor):
        ids = prompt
    else:
        ids = encode_prompt(tokenizer, prompt, chat=chat, ended=model.config.is_encoder_decoder)
    wanted = Wanted.of(model, tokenizer, ids, sampling, write=write, cancelled=cancelled)
    devices = [model.device] if model.device.type == "cuda" else []
    start = time.perf_counter()
    with told_of_tokens(model), _graphs(wanted, asked=graphs), torch.random.fork_rng(devices=devices):
        torch.manual_seed(sampling.seed)
        output = wanted.generate()
    return wanted.generation(start, int(output[0, -1]))


@contextmanager
def _graphs(wanted: Wanted, *, asked: bool) -> Iterator[None]:
    """While this lasts tokens of the answer are graphs, if that is asked for and goes."""
    why = refusal(wanted.model) if asked else None
    if why is not None:
        tell(why)
    if not asked or why is not None:
        yield
        return
    wanted.settings.cache_implementation = "static"
    # transformers would compile the model for such a cache
    wanted.settings.disable_compile = True
    with as_graphs(wanted.model):
        yield
