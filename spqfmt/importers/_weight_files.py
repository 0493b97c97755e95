"""Which files of a folder hold the model: those that transformers would load, in the order in which it looks.

    model.safetensors, model.safetensors.index.json, pytorch_model.bin, pytorch_model.bin.index.json

Pickles are never opened, so the last two end in a refusal. Where transformers finds nothing, one file alone or one
complete set of shards is taken. Other weights beside them (variants, an adapter, another library's copy) are not the
model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spqfmt.errors import ImporterError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_ADAPTER = re.compile(r"adapter_model.*\.safetensors")
_SHARD = re.compile(r"^(?P<stem>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})\.safetensors$")


@dataclass(frozen=True)
class WeightFiles:
    """A model's files in order of their names. `named_by` is what says that they belong together."""

    files: tuple[Path, ...]
    named_by: Path
    promised: Mapping[str, str] = field(default_factory=dict)
    """Tensor name -> file name, as an index has it; empty without one."""


def weight_files(folder: Path, config: Mapping[str, Any]) -> tuple[WeightFiles, WeightFiles | None]:
    """The model's files, and a second complete set that claims to be the same model, None as a rule.

    Raises ImporterError in one line for a folder without weights, or with some that do not make a model.
    """
    named = config.get("transformers_weights")
    if named not in (None, SINGLE):
        raise ImporterError(
            f"{folder / 'config.json'}: it names {named!r} as the file of weights (transformers_weights), which is not "
            f"supported; give that file the name {SINGLE} and take the key out"
        )
    single, index = folder / SINGLE, folder / INDEX
    if _is_there(single):
        return WeightFiles((single,), single), _rival(single, index)
    if _is_there(index):
        return _by_index(index), None
    pickled = next((folder / name for name in _PICKLED if (folder / name).is_file()), None)
    if pickled is not None:
        raise _pickle(pickled, next(iter(sorted(folder.glob("*.safetensors"))), None))
    return _without_index(folder), None


def explain_no_weights(folder: Path) -> None:
    """Raise ImporterError unless the folder holds safetensors files."""
    if any(folder.glob("*.safetensors")):
        return
    pickle = next((file for pattern in _PICKLES for file in sorted(folder.glob(pattern))), None)
    if pickle is not None:
        raise _pickle(pickle)
    gguf = next(iter(sorted(folder.glob("*.gguf"))), None)
    if gguf is not None:
        raise ImporterError(f"{folder}: a folder with GGUF files; give the file, such as {gguf}")
    raise ImporterError(
        f"{folder}: no .safetensors files in this folder; give the folder that holds the weights"
    )


def _pickle(file: Path, beside: Path | None = None) -> ImporterError:
    rather = "" if beside is None else f" transformers loads them rather than {beside.name};"
    return ImporterError(
        f"{file}: pickled weights can run code and are never opened;{rather} "
        "save the model as safetensors first (save_pretrained does)"
    )


def _is_there(file: Path) -> bool:
    if file.is_symlink() and not file.exists():
        raise ImporterError(f"{file}: a link to a file that is missing; download the model again")
    return file.is_file()


def _read_index(file: Path) -> dict[str, str]:
    """Tensor name -> file name."""
    try:
        weight_map = json.loads(file.read_bytes())["weight_map"]
        entries = {str(name): str(shard) for name, shard in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ImporterError(f"{file}: no valid weight_map in it; download the file again") from None
    outside = next((shard for shard in entries.values() if Path(shard).name != shard), None)
    if outside is not None:
        raise ImporterError(f"{file}: names the shard {outside!r}, which is not a plain file name")
    return entries


def _by_index(index: Path) -> WeightFiles:
    promised = _read_index(index)
    files = tuple(sorted({index.with_name(shard) for shard in promised.values()}))
    missing = next((file for file in files if not _is_there(file)), None)
    if missing is not None:
        raise ImporterError(f"{missing}: this shard is named in the index but missing; download it again")
    return WeightFiles(files, index, promised)


def _rival(single: Path, index: Path) -> WeightFiles | None:
    """What the index beside a single file names, where that is another model that could be loaded."""
    try:
        other = _by_index(index) if index.is_file() else None
    except ImporterError:
        return None  # transformers does not look at it, and shards that are gone are no model
    return None if other is None or other.files in ((), (single,)) else other


def _without_index(folder: Path) -> WeightFiles:
    explain_no_weights(folder)
    files = sorted(file for file in folder.glob("*.safetensors") if not _ADAPTER.fullmatch(file.name))
    if not files:
        raise ImporterError(
            f"{folder}: an adapter without the model that it changes; merge it into its base and give that folder"
        )
    if len(files) == 1 and _SHARD.match(files[0].name) is None and _is_there(files[0]):
        return WeightFiles((files[0],), files[0])
    shards = [match for file in files if (match := _SHARD.match(file.name))]
    stems = {(match["stem"], match["count"]) for match in shards}
    if len(stems) != 1:
        raise ImporterError(
            f"{folder}: several .safetensors files and no {INDEX} that says which belong together"
        )
    stem, count = next(iter(stems))
    paths = tuple(folder / f"{stem}-{i:05d}-of-{count}.safetensors" for i in range(1, int(count) + 1))
    for file in paths:
        if not _is_there(file):
            raise ImporterError(f"{file}: this shard is missing; download it again")
    return WeightFiles(paths, paths[0])
