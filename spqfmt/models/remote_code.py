"""Classes that come with a model, in modules beside its config: run only where the caller trusts them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from spqfmt.errors import UnsupportedError

AUTO_MAP = "auto_map"
"""The key of a config that says for each of transformers' Auto classes which class, of which module, it stands for."""
_LIKELIEST = ("AutoModelForCausalLM", "AutoModel")


def refuse_elsewhere(name: str, auto_map: Any) -> None:
    """Raise UnsupportedError where the file `name` has its code in a repository, which would be asked for it."""
    for reference in _references(auto_map):
        if "--" in reference:
            raise UnsupportedError(
                f"{name}: auto_map names code of a repository, {reference!r}; pack the model with that code beside its "
                "config",
                AUTO_MAP,
            )


def names_code(config: bytes) -> bool:
    """Whether a config.json names code of its own."""
    try:
        settings = json.loads(config)
    except (ValueError, RecursionError):
        return False
    return isinstance(settings, dict) and bool(settings.get(AUTO_MAP))


def own_model_class(config: Any, folder: Path) -> Any | None:
    """The class of the config's own code in `folder` that the model is of; None where its config names none.

    It is the first of its architectures that the code has, else the one that continues texts. Raises what the code
    does, and UnsupportedError for a class of something else.
    """
    auto_map = getattr(config, AUTO_MAP, None)
    if not isinstance(auto_map, dict):
        return None
    found = {
        auto: reference
        for auto, reference in auto_map.items()
        if auto.startswith("AutoModel") and isinstance(reference, str)
    }
    classes = {reference.rpartition(".")[2]: auto for auto, reference in found.items()}
    named = [classes[name] for name in config.architectures or () if name in classes]
    auto = next((name for name in (*named, *_LIKELIEST) if name in found), None)
    if auto is None:
        return None
    model_class: Any = get_class_from_dynamic_module(found[auto], folder, local_files_only=True)
    is_model = isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel)
    if not is_model:
        raise UnsupportedError(f"{found[auto]!r} of its auto_map is no model of transformers", AUTO_MAP)
    model_class.register_for_auto_class(auto)  # as transformers does: what is saved names its code again
    return model_class


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = list(value.values())
    for part in value if isinstance(value, list) else [value]:
        if isinstance(part, str):
            yield part
        elif isinstance(part, dict | list):
            yield from _references(part)
