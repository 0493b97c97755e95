"""A model's config, tokenizer and class, as transformers has them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import transformers

from spqfmt.errors import SpqError, UnsupportedError, foreign_errors
from spqfmt.models.growth import refuse_growth


def read_config(folder: Path, explained: Callable[[str], SpqError], *, trusted: bool = False) -> Any:
    """transformers' config of the config.json in the folder; of a class that is beside it, where that is `trusted`.

    Raises what `explained` makes of one sentence where transformers cannot use it.
    """
    with foreign_errors(explained):
        return transformers.AutoConfig.from_pretrained(
            folder, trust_remote_code=trusted, local_files_only=True
        )


def read_tokenizer(folder: Path, explained: Callable[[str], SpqError], *, trusted: bool = False) -> Any:
    """transformers' tokenizer of the files in the folder. Raises as `read_config` does, and for one that multiplies."""
    with foreign_errors(explained):
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, trust_remote_code=trusted, local_files_only=True
        )
    if not isinstance(tokenizer, transformers.PreTrainedTokenizerBase):
        raise explained(f"tokenizer_class names {type(tokenizer).__name__}, which cuts no text alone")
    refuse_growth(tokenizer, explained)
    return tokenizer


def text_config(config: Any) -> Any:
    """The part of a config that is about text: of several the decoder's; the whole where there is none."""
    every: tuple[dict[str, bool], ...] = ({}, {"decoder": True})
    for options in every:
        # transformers refuses to choose where there are several, as in musicgen's.
        with suppress(ValueError):
            return config.get_text_config(**options)
    return config


def class_named(name: str) -> Any | None:
    """transformers' class of models of that name; None where it has none that can be used here."""
    found, base = getattr(transformers, name, None), transformers.PreTrainedModel
    # The base is no model, and to make one of it would change what transformers thinks that all others can do.
    return found if isinstance(found, type) and issubclass(found, base) and found is not base else None


def find_model_class(config: Any, path: Path | None = None) -> Any:
    """The class that the config names, else the causal language model of its type, else its bare model.

    Raises UnsupportedError, which names `path`, where transformers has none, or none without another library.
    """
    where = "" if path is None else f"{path}: "
    names = config.architectures or ()
    if not isinstance(names, list | tuple):
        raise UnsupportedError(
            f"{where}architectures in its config.json is no list of names", "architectures"
        )
    for name in names:
        if (named := class_named(str(name))) is not None:
            return named
        backends = getattr(getattr(transformers, str(name), None), "_backends", None)
        if backends is not None:
            raise UnsupportedError(
                f"{where}{name} needs {', '.join(backends)}: install what is missing", name
            )
    for mapping in (transformers.MODEL_FOR_CAUSAL_LM_MAPPING, transformers.MODEL_MAPPING):
        # The registry has names of classes that the library has not.
        with suppress(ValueError):
            if type(config) in mapping:
                found = mapping[type(config)]
                return found[0] if isinstance(found, list | tuple) else found
    raise UnsupportedError(
        f"{where}transformers has no model of type {config.model_type!r}", config.model_type
    )
