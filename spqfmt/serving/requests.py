"""What a client asks for, from its JSON: checked here, so that nothing behind has to."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from spqfmt.errors import OptionError
from spqfmt.loaders import Messages, Sampling

_T = TypeVar("_T")
_ROLES = {"system", "developer", "user", "assistant", "tool"}
# What would change the answer, and is not done here; each with the values that ask for nothing.
_NOT_DONE: Mapping[str, tuple[object, ...]] = {
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "response_format": ({"type": "text"},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "modalities": (["text"],),
}


_DONE = {
    *("model", "messages", "prompt", "stream", "stream_options", "max_tokens", "max_completion_tokens"),
    *("stop", "temperature", "top_p", "top_k", "seed"),
}
# What says who asks, or how it is to be paid for and kept.
_NO_CHANGE = {
    *("user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier"),
    *("prompt_cache_key", "prompt_cache_retention"),
}


class RequestError(Exception):
    """What is wrong with a request, as the API says it."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None, status: int = 400):
        super().__init__(message)
        self.param, self.code, self.status = param, code, status

    def to_json(self) -> dict[str, Any]:
        """The body of the answer."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True)
class Question:
    """One answer that is wanted."""

    prompt: str | Messages
    sampling: Sampling
    is_stream: bool
    with_usage: bool
    """Whether a stream ends with the numbers of tokens."""


def read_request(body: object, model: str, *, is_chat: bool, most_tokens: int) -> Question:
    """Check a body that was JSON. Raises RequestError."""
    if not isinstance(body, dict):
        raise RequestError("the body is not a JSON object")
    wanted = body.get("model")
    if wanted is not None and wanted != model:
        raise RequestError(
            f"no model {str(wanted)[:80]!r} here, only {model!r}",
            param="model",
            code="model_not_found",
            status=404,
        )
    for name, value in body.items():
        if value is None or name in _DONE or name in _NO_CHANGE:
            continue
        # 0 is no False: a completion's logprobs of 0 asks for those of its own tokens.
        if not any(
            value == idle and isinstance(value, bool) == isinstance(idle, bool)
            for idle in _NOT_DONE.get(name, ())
        ):
            shown = repr(name[:80]) if name not in _NOT_DONE else name
            raise RequestError(
                f"{shown} is not supported here", param=name[:80], code="unsupported_parameter"
            )
    prompt = _messages(body.get("messages")) if is_chat else _prompt(body.get("prompt"))
    stream_options: dict[str, Any] = _optional(body, "stream_options", dict) or {}
    return Question(
        prompt=prompt,
        sampling=_sampling(body, most_tokens),
        is_stream=_optional(body, "stream", bool) or False,
        with_usage=stream_options.get("include_usage") is True,
    )


def _sampling(body: dict[str, Any], most_tokens: int) -> Sampling:
    newer, older = _optional(body, "max_completion_tokens", int), _optional(body, "max_tokens", int)
    n_tokens = older if newer is None else newer
    stop = body.get("stop")
    stops = [stop] if isinstance(stop, str) else [] if stop is None else stop
    if not isinstance(stops, list) or not all(isinstance(text, str) for text in stops):
        raise RequestError("stop is a text or a list of texts", param="stop")
    temperature, seed = _optional(body, "temperature", float), _optional(body, "seed", int)
    try:
        return Sampling(
            max_new_tokens=most_tokens if n_tokens is None else min(most_tokens, n_tokens),
            temperature=1.0 if temperature is None else temperature,
            top_p=_optional(body, "top_p", float),
            top_k=_optional(body, "top_k", int),
            seed=secrets.randbits(63) if seed is None else seed,
            stop=tuple(stops),
        )
    except OptionError as error:
        said = str(error)
        names = {"max_new_tokens": "max_tokens" if newer is None else "max_completion_tokens", "an": "stop"}
        first = said.split(maxsplit=1)[0].rstrip(":")
        param = names.get(first, first)
        raise RequestError(said.replace("max_new_tokens", param, 1), param=param) from error


def _optional(body: dict[str, Any], name: str, kind: Callable[..., _T]) -> _T | None:
    value = body.get(name)
    if value is None:
        return None
    # Whole numbers are floats too, and true is no number.
    fits = isinstance(value, bool) == (kind is bool) and isinstance(
        value,
        (int, float) if kind is float else kind,  # type: ignore[arg-type]
    )
    if not fits:
        raise RequestError(f"{name} is of a wrong type", param=name)
    try:
        return kind(value)
    except OverflowError:
        raise RequestError(f"{name} is out of range", param=name) from None


def _messages(given: object) -> Messages:
    if not isinstance(given, list) or not given:
        raise RequestError("messages is a list of at least one message", param="messages")
    found = []
    for number, message in enumerate(given):
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str) or role not in _ROLES:
            raise RequestError(f"message {number} has no known role", param="messages")
        role = "system" if role == "developer" else role
        found.append({"role": role, "content": _text(message.get("content"), number)})
    return found


def _text(content: object, number: int) -> str:
    if isinstance(content, str):
        return _encodable(content)
    if isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
        for part in content
    ):
        return _encodable("".join(part["text"] for part in content))
    raise RequestError(f"message {number}: its content is not text", param="messages")


def _prompt(given: object) -> str:
    if isinstance(given, list) and len(given) == 1:
        given = given[0]
    if not isinstance(given, str):
        raise RequestError("prompt is one text", param="prompt")
    return _encodable(given)


def _encodable(text: str) -> str:
    """Make a text one that tokenizers take. JSON can name halves of characters."""
    return text.encode("utf-8", "replace").decode()
