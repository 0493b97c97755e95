"""What people give instead of a model, by mistake or because a download was not whole: each is called what it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spqfmt.errors import ImporterError
from spqfmt.stand_ins import BEGIN_BYTES, no_file, what_came_instead

ADAPTER = "adapter_config.json"
ADAPTER_KIND = "adapter"
"""What a packed adapter says of its source."""
PIPELINE = "model_index.json"
MODULES = "modules.json"
ROUTER = "router_config.json"
"""A folder of sentence-transformers has it where its modules are alternatives."""
PARTS_KINDS = ("diffusers", "sentence-transformers")
"""Kinds of sources of several models, whose tensors have the names of their folders before their own."""
# What need not be whole: of these only the model's own are read.
_UNREAD = frozenset(
    {".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".tflite", ".ot", ".mlmodel"}
)
# Files that begin neither as a pointer nor as a page.
_DATA = frozenset({".safetensors", ".gguf", ".json", ".model", ".tiktoken"})


def refuse_stand_ins(path: Path) -> None:
    """Raise ImporterError for a path that is not there, or is one of these.

    A link that leads nowhere, a Git LFS pointer, a web page or a pipe instead of a file, a hub's cache.
    """
    if not path.exists():
        leads = f"a link to {path.readlink()}, which is not there" if path.is_symlink() else ""
        raise ImporterError(f"{path}: {leads or 'no such file or folder'}")
    if instead := no_file(path):
        raise ImporterError(f"{path}: {instead}")
    if not path.is_dir():
        _refuse_instead(path)
        return
    _refuse_cache(path)
    for file in _read_files(path):
        if not file.exists():
            raise ImporterError(
                f"{file}: a link to {file.readlink()}, which is not there; download the model again"
            )
        _refuse_instead(file)


def base_of_adapter(folder: Path) -> str:
    """The name of the model that an adapter changes; empty where the folder does not say."""
    base = _json(folder / ADAPTER).get("base_model_name_or_path")
    return base if isinstance(base, str) else ""


def _read_files(folder: Path) -> Iterator[Path]:
    """The files of a folder that belong to a model, links that lead nowhere among them."""
    for file in sorted(folder.iterdir()):
        if not file.is_dir() and file.suffix not in _UNREAD and not file.name.startswith("."):
            yield file


def _refuse_instead(file: Path) -> None:
    if file.suffix in _DATA and file.is_file():
        with file.open("rb") as handle:
            instead = what_came_instead(handle.read(BEGIN_BYTES))
        if instead:
            raise ImporterError(f"{file}: {instead}")


def _refuse_cache(folder: Path) -> None:
    """A hub's cache keeps models in models--OWNER--NAME/snapshots/COMMIT."""
    caches = [folder] if folder.name.startswith("models--") else sorted(folder.glob("models--*"))
    snapshots = [snapshot for cache in caches for snapshot in sorted((cache / "snapshots").glob("*"))]
    if (folder / "config.json").exists() or not caches:
        return
    which = f"give a snapshot in it, such as {snapshots[0]}" if snapshots else "it holds no snapshot"
    raise ImporterError(f"{folder}: the cache of a hub, not a model's folder; {which}")


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
