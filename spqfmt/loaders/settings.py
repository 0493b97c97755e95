"""What generation takes over from a model: the tokens that end a text, and how to sample.

A generation config may ask for anything that transformers can do: beams, several answers, other caches, penalties. Text
is generated one way here, so only what that way needs is taken.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers

from spqfmt.errors import SpqError, UnsupportedError, foreign_errors
from spqfmt.importers.end_tokens import known_ends

_TOKENS = ("bos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id")
_SAMPLING = (
    "top_k",
    "top_p",
    "min_p",
    "top_h",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "repetition_penalty",
    "no_repeat_ngram_size",
)
_STOP_CHARACTERS = 256
"""For each, transformers goes through the whole vocabulary."""


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Ids of the tokens that end a text: the generation config's, the tokenizer's own, and the known ones that its
    chat template writes.
    """
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    template = _template_text(tokenizer)
    special = {token: tokenizer.convert_tokens_to_ids(token) for token in tokenizer.all_special_tokens}
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special |= {str(token): index for index, token in added.items() if token.special}
    written = known_ends({token: index for token, index in special.items() if token in template})
    found = [*ids, tokenizer.eos_token_id, *written]
    return list(dict.fromkeys(index for index in found if isinstance(index, int) and index >= 0))


def read_generation_config(path: Path, folder: Path) -> transformers.GenerationConfig:
    """The folder's generation_config.json; what generation takes over where transformers refuses the rest.

    Raises UnsupportedError, which names `path`, where it refuses that too.
    """

    def explained(reason: str) -> SpqError:
        return UnsupportedError(
            f"{path}: transformers cannot use its generation_config.json: {reason}; mend or leave out that file",
            "generation config",
        )

    try:
        with foreign_errors(explained):
            return transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
    except UnsupportedError:
        with foreign_errors(explained):
            values = json.loads((folder / "generation_config.json").read_bytes())
            if not isinstance(values, dict):
                raise explained("it is not a JSON object") from None
            wanted = {"eos_token_id", "stop_strings", *_TOKENS, *_SAMPLING}
            return transformers.GenerationConfig(**{n: v for n, v in values.items() if n in wanted})


def _template_text(tokenizer: Any) -> str:
    template = getattr(tokenizer, "chat_template", None)
    return "\n".join(template.values()) if isinstance(template, dict) else template or ""


def generation_settings(
    model: Any,
    tokenizer: Any,
    *,
    temperature: float,
    max_new_tokens: int,
    top_p: float | None = None,
    top_k: int | None = None,
) -> transformers.GenerationConfig:
    """One answer, token by token: the likeliest each time at `temperature` 0, else sampled as the model asks.

    `top_p` and `top_k` stand before what the model asks for.

    Raises SpqError for stop strings that would take long to look for.
    """
    given = model.generation_config
    wanted = (*_TOKENS, "stop_strings", *(_SAMPLING if temperature > 0 else ()))
    settings = {name: value for name in wanted if (value := getattr(given, name, None)) is not None}
    if temperature > 0:
        settings |= {name: value for name, value in (("top_p", top_p), ("top_k", top_k)) if value is not None}
    stops = settings.get("stop_strings", ())
    n_characters = len(stops) if isinstance(stops, str) else sum(len(stop) for stop in stops)
    if n_characters > _STOP_CHARACTERS:
        raise SpqError(
            f"the model's generation config has stop strings of {n_characters} characters, {_STOP_CHARACTERS} are the "
            "most; mend or leave out that file"
        )
    for name in settings.keys() & set(_TOKENS):
        if not isinstance(settings[name], int) or settings[name] < 0:
            del settings[name]
    ends = end_tokens(model, tokenizer)
    if ends:
        settings = {"pad_token_id": ends[0], **settings, "eos_token_id": ends}
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    return transformers.GenerationConfig(max_new_tokens=max_new_tokens, **settings, **sampling)
