"""Which files of a folder hold the model: those that transformers would load, in the order in which it looks.

    model.safetensors, model.safetensors.index.json, pytorch_model.bin, pytorch_model.bin.index.json

diffusers and peft have other names for the same. Where none of them is there, one file alone or one complete set of
shards is taken. Other weights beside them (variants, an adapter, another library's copy) are not the
model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spqfmt.asset_names import is_source_name
from spqfmt.errors import ImporterError
from spqfmt.importers._quantizer_names import SPQR_REST
from spqfmt.stand_ins import no_file

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
"""Endings of files that torch.save writes."""
# transformers', diffusers' and, in a folder without a model's, peft's.
_STEMS = ("model", "diffusion_pytorch_model")
_PICKLE_STEMS = ("pytorch_model", "diffusion_pytorch_model")
_ADAPTER_STEM = "adapter_model"
_OF_TRAINING = re.compile(r"training_args\.bin|optimizer.*|scheduler.*|scaler.*|rng_state.*|random_states.*")
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
    has_config = (folder / "config.json").is_file()
    for stem in _STEMS if has_config else (*_STEMS, _ADAPTER_STEM):
        single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
        if _is_there(single):
            return WeightFiles((single,), single), _rival(single, index)
        if _is_there(index):
            return _by_index(index), None
    for stem in _PICKLE_STEMS if has_config else (*_PICKLE_STEMS, _ADAPTER_STEM):
        single, index = folder / f"{stem}.bin", folder / f"{stem}.bin.index.json"
        if _is_there(single):
            return WeightFiles((single,), single), None
        if _is_there(index):
            return _by_index(index), None
    return _without_index(folder), None


def has_weights(folder: Path) -> bool:
    """Whether a folder holds files of weights that can be read."""
    return any(file.suffix in (".safetensors", *PICKLES) for file in folder.iterdir())


def _explain_no_weights(folder: Path) -> ImporterError:
    gguf = next(iter(sorted(folder.glob("*.gguf"))), None)
    if gguf is not None:
        return ImporterError(f"{folder}: a folder with GGUF files; give the file, such as {gguf}")
    return ImporterError(
        f"{folder}: no .safetensors files in this folder; give the folder that holds the weights"
    )


def _is_there(file: Path) -> bool:
    if file.is_symlink() and not file.exists():
        raise ImporterError(f"{file}: a link to a file that is missing; download the model again")
    if file.exists() and (instead := no_file(file)):
        raise ImporterError(f"{file}: {instead}")
    return file.is_file()


def _read_index(file: Path) -> dict[str, str]:
    """Read which file each tensor is in, by its name."""
    try:
        weight_map = json.loads(file.read_bytes())["weight_map"]
        entries = {str(name): str(shard) for name, shard in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ImporterError(f"{file}: no valid weight_map in it; download the file again") from None
    outside = next((shard for shard in entries.values() if not _lies_below(shard)), None)
    if outside is not None:
        raise ImporterError(f"{file}: names the shard {outside!r}, which is no file in this folder")
    return entries


def _lies_below(shard: str) -> bool:
    """Whether a name is a file's in the folder or in one below."""
    return is_source_name(shard) or ("/" not in shard and shard not in {"", ".", ".."} and "\0" not in shard)


def _by_index(index: Path) -> WeightFiles:
    promised = _read_index(index)
    files = tuple(sorted({index.parent / shard for shard in promised.values()}))
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
    files = sorted(file for file in folder.glob("*.safetensors") if not _ADAPTER.fullmatch(file.name))
    if not files and any(folder.glob("*.safetensors")):
        raise ImporterError(
            f"{folder}: an adapter without the model that its config.json tells of; take that file away, or merge the "
            "adapter into its base"
        )
    if not files:
        return _one_pickle(folder)
    if len(files) == 1 and _SHARD.match(files[0].name) is None and _is_there(files[0]):
        return WeightFiles((files[0],), files[0])
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if len(indexes) == 1 and _is_there(indexes[0]):
        return _by_index(indexes[0])
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


def _one_pickle(folder: Path) -> WeightFiles:
    """The one file of torch's that can be the model: what trainers write beside it is none."""
    if (folder / SPQR_REST).is_file():
        raise ImporterError(
            f"{folder}: quantized already (spqr), its codes in files of their own, which are not read; "
            "give the model that it was made from"
        )
    files = sorted(
        file for file in folder.iterdir() if file.suffix in PICKLES and not _OF_TRAINING.fullmatch(file.name)
    )
    if not files:
        raise _explain_no_weights(folder)
    if len(files) > 1:
        raise ImporterError(
            f"{folder}: several files that torch wrote, such as {files[0].name} and {files[1].name}; give one of them"
        )
    return WeightFiles((files[0],), files[0])
