"""The settings of a model's small files that make other programs fetch or run code, for `unpack`.

Shorter than the list of `harmless`: a file that goes back to its user keeps what only names a place where something
was, and what its reader computes without.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

MOST_BYTES = 4 << 20
"""More are no settings; they are not looked into, and count as code."""

_FILES = ("config*.json", "*_config.json")
_MODULES = "modules.json"
_OWN_MODULES = "sentence_transformers."
"""sentence-transformers loads modules of any other name from the folder or from a repository, and asks nobody."""
_PLACE = re.compile(r"[/\\:@]")


def _never(value: Any) -> bool:
    return not value


def _plain(value: Any) -> bool:
    """Whether it is, or holds, names alone: of what is installed, or of files beside."""
    if isinstance(value, Mapping | list):
        return all(map(_plain, value.values() if isinstance(value, Mapping) else value))
    return not isinstance(value, str) or _PLACE.search(value) is None


CODE: Mapping[str, Callable[[Any], bool]] = {
    "auto_map": _never,
    "custom_pipelines": _never,
    "use_kernels": _never,
    "kernel_config": _never,
    **{
        f"{before}{what}_implementation{behind}": _plain
        for what in ("attn", "experts")
        for before, behind in (("", ""), ("_", ""), ("_", "_internal"))
    },
    "configuration_files": _plain,
    "fast_tokenizer_files": _plain,
    "transformers_weights": _plain,
}
"""Keys, at every depth, and which of their values name no code and no other folder."""


def is_settings(name: str) -> bool:
    """Whether a file of this name may hold such settings."""
    last = name.rpartition("/")[2].lower()
    return last == _MODULES or any(fnmatchcase(last, pattern) for pattern in _FILES)


def without_code(name: str, data: bytes) -> tuple[bytes, tuple[str, ...]] | None:
    """A file of settings without those, and their keys; the very same bytes where there are none.

    None for one that cannot be looked into, being too large or nested too deep, and for one that is all about code.
    """
    if len(data) > MOST_BYTES:
        return None
    found: dict[str, None] = {}
    try:
        value = json.loads(data)
        if name.lower().endswith(_MODULES) and not _are_own_modules(value):
            return None
        changed = _without(value, found)
    except RecursionError:
        return None
    except ValueError:
        return data, ()  # nobody reads settings in it
    return (
        (f"{json.dumps(changed, indent=2, ensure_ascii=False)}\n".encode(), tuple(found))
        if found
        else (data, ())
    )


def _are_own_modules(value: Any) -> bool:
    modules = value if isinstance(value, list) else [value]
    return all(
        isinstance(module, dict) and str(module.get("type")).startswith(_OWN_MODULES) for module in modules
    )


def _without(value: Any, found: dict[str, None]) -> Any:
    if isinstance(value, list):
        return [_without(part, found) for part in value]
    if not isinstance(value, dict):
        return value
    dropped = {key for key, part in value.items() if key in CODE and not CODE[key](part)}
    found |= dict.fromkeys(key for key in value if key in dropped)
    return {key: _without(part, found) for key, part in value.items() if key not in dropped}
