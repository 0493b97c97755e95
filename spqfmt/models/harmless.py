"""The settings of a model that lead transformers to code, to a hub or to other files: one list of them.

A config, a tokenizer's config and their like come with the model, from whoever made it. transformers follows some of
their values to kernels on a hub, to repositories, to modules and to paths. What a model computes does not depend on
most of them, and these are left out; with the others a model is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from spqfmt.errors import UnsupportedError
from spqfmt.models.remote_code import AUTO_MAP, refuse_elsewhere

Keep = Callable[[Any], bool]


def _never(value: Any) -> bool:
    return False


def _one_of(*names: str) -> Keep:
    """Names, alone or by the part of the model that they are for."""

    def keep(value: Any) -> bool:
        return all(map(keep, value.values())) if isinstance(value, dict) else value is None or value in names

    return keep


def _without_folders(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(n, str) and not re.search(r"[/\\]", n) for n in value)


# What torch itself computes: others are packages, or repositories of kernels on a hub (flash_attention_2 becomes one).
_ATTENTION = _one_of("eager", "sdpa")
_EXPERTS = _one_of("eager", "batched_mm", "grouped_mm")

CONFIG: Mapping[str, Keep] = {
    "auto_map": _never,  # modules beside the weights, or in a repository
    "custom_pipelines": _never,
    "attn_implementation": _ATTENTION,
    "_attn_implementation": _ATTENTION,
    "_attn_implementation_internal": _ATTENTION,
    "experts_implementation": _EXPERTS,
    "_experts_implementation": _EXPERTS,
    "_experts_implementation_internal": _EXPERTS,
    "use_kernels": _never,
    "kernel_config": _never,
    "configuration_files": _never,  # other configs, which this list would not see
    "transformers_weights": _never,  # other weights
}
"""Keys of a config, at every depth, and which of their values stay."""

_TOKENIZER: Mapping[str, Keep] = {
    "fast_tokenizer_files": _without_folders,
    "name_or_path": _never,
    "init_inputs": _never,  # arguments by position, which may be paths
    "mecab_option": _never,  # a command line
}
# Numbers of tokens that transformers makes without a word of them in a file. T5 has 100.
_COUNTS = ("extra_ids", "offset")
_MOST_TOKENS = 10_000
# Files of a tokenizer are found in its folder; a path that is stored for one is of the machine that wrote it.
_PATH = re.compile(r".*_(file|path|dir)")
_SPECIAL_TOKENS = re.compile(r".*_tokens?")


def harmless(name: str, data: bytes, *, trusted: bool = False) -> bytes:
    """The asset `name` without the settings that lead elsewhere; `data` itself where there are none.

    `trusted`: whether code beside it may run, so that auto_map stays. Raises UnsupportedError for a setting without
    which the model would be another, and for trusted code that is elsewhere.
    """
    change = _CHANGES.get(name.lower())  # some file systems make no difference of case
    if change is None:
        return data
    try:
        settings = json.loads(data)
        changed = change(name, settings) if isinstance(settings, dict) else settings
        if trusted and isinstance(settings, dict) and AUTO_MAP in settings:
            refuse_elsewhere(name, settings[AUTO_MAP])
            changed |= {AUTO_MAP: settings[AUTO_MAP]}
    except RecursionError:
        raise UnsupportedError(f"{name}: nested deeper than any settings are", name) from None
    except ValueError:
        return data  # transformers says what is wrong with it
    return data if changed == settings else json.dumps(changed).encode()


def dropped_values(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys and values of a config, at every depth, that do not stay."""
    for key, value in config.items():
        if key in CONFIG and not CONFIG[key](value):
            yield key, value
        for part in value if isinstance(value, list) else (value,):
            if isinstance(part, dict):
                yield from dropped_values(part)


def _config(name: str, value: Any) -> Any:
    if isinstance(value, list):
        return [_config(name, part) for part in value]
    if not isinstance(value, dict):
        return value
    _refuse_backbone(name, value)
    return {key: _config(name, part) for key, part in value.items() if key not in CONFIG or CONFIG[key](part)}


def _refuse_backbone(name: str, config: Mapping[str, Any]) -> None:
    """Raise UnsupportedError for an image model by a name that transformers or timm looks up.

    transformers asks a hub for `backbone` where there is no `backbone_config`; timm takes names as `hf_hub:owner/name`
    and `local-dir:folder`, and reads a `checkpoint_path`.
    """
    looked_up = config.get("backbone") is not None and config.get("model_type") != "timm_backbone"
    if looked_up and config.get("backbone_config") is None:
        raise UnsupportedError(
            f"{name}: names the backbone {config['backbone']!r}, which transformers would look up on a hub; "
            "store the backbone's own config as backbone_config",
            "backbone",
        )
    for key in ("backbone", "architecture"):
        if re.search(r"[:/]", str(config.get(key) or "")):
            raise UnsupportedError(f"{name}: {key} {config[key]!r} names a place, not an architecture", key)
    if config.get("checkpoint_path"):
        raise UnsupportedError(
            f"{name}: checkpoint_path names other weights; leave it out", "checkpoint_path"
        )


def _tokenizer(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    for key in _COUNTS:
        if isinstance(number := settings.get(key), int | float) and number > _MOST_TOKENS:
            raise UnsupportedError(f"{name}: {key} is {number}; {_MOST_TOKENS} is the most", key)
    return {
        key: _tokenizer(name, value) if isinstance(value, dict) and key.endswith("_kwargs") else value
        for key, value in settings.items()
        if _TOKENIZER.get(key, lambda _, key=key: not _PATH.fullmatch(key))(value)
    }


def _special_tokens(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """transformers gives whatever stands there to the tokenizer, over the files that it found."""
    return {key: value for key, value in settings.items() if _SPECIAL_TOKENS.fullmatch(key)}


_CHANGES = {
    "config.json": _config,
    "tokenizer_config.json": _tokenizer,
    "special_tokens_map.json": _special_tokens,
}
SETTINGS = frozenset(_CHANGES)
"""The files of which it is a list."""
