"""A folder that loads again, from a model with packed weights: its file as it is, and the config that it has now."""

from __future__ import annotations

import copy
import os
import shutil
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from spqfmt.address import Address
from spqfmt.errors import OptionError, SpqError
from spqfmt.packed_names import OWN_WEIGHTS, packed_models

_OF_NO_CONCERN = frozenset(
    {"is_main_process", "max_shard_size", "save_original_format", "save_peft_format", "token"}
)
"""What transformers takes about files of plain weights."""
_INSTEAD = "load with packed=False, change and save that, and pack it"


class LoadedFrom:
    """The files that a model was loaded from, and its ordinary parameters as they were then."""

    def __init__(self, files: Sequence[Path], model: Any) -> None:
        self._files = {file: _mark(file) for file in files}
        self._parameters = {
            name: (weakref.ref(parameter), _version(parameter))
            for name, parameter in model.named_parameters()
        }

    def save(self, model: Any, folder: str | os.PathLike[str], options: Mapping[str, Any]) -> None:
        """Write the files, the config and the generation config.

        Raises OptionError for what cannot be done so, SpqError for weights or files that are not what was loaded.
        """
        refused = sorted(n for n, value in options.items() if value and n not in _OF_NO_CONCERN)
        if refused:
            raise OptionError(f"{', '.join(refused)}: packed weights are saved as they are, as a file")
        ranks = getattr(model, "loaded_by_ranks", None)
        # All ranks are told to save, and have one file.
        if not options.get("is_main_process", True) or (ranks is not None and ranks.rank):
            return
        if elsewhere := next((file for file in self._files if isinstance(file, Address)), None):
            raise OptionError(
                f"{elsewhere}: a model at an address is not saved; download its file and load that"
            )
        at = Path(folder)
        self._check(model, at)
        at.mkdir(parents=True, exist_ok=True)
        for file in self._files:
            _copy(file, at / file.name)
        config = copy.deepcopy(model.config)
        config.dtype, config.architectures = model.dtype, [type(model).__name__]
        if ranks is not None:
            vars(config).pop("distributed_config", None)
        config.save_pretrained(at)
        if model.can_generate():
            model.generation_config.save_pretrained(at)

    def _check(self, model: Any, folder: Path) -> None:
        for name, (parameter, version) in self._parameters.items():
            found = parameter()
            if found is None or _version(found) != version:
                raise SpqError(
                    f"{name} has changed since it was loaded, and a packed file does not change: {_INSTEAD}"
                )
        new = next((name for name, _ in model.named_parameters() if name not in self._parameters), None)
        if new is not None:
            raise SpqError(f"{new} is new since the model was loaded: {_INSTEAD}")
        for file, mark in self._files.items():
            if _mark(file) != mark:
                raise SpqError(f"{file} is not the file any more that the model was loaded from")
        if not folder.is_dir():
            return
        names = [path.name for path in folder.iterdir() if path.is_file()]
        own = {file.name for file in self._files}
        others = [n for n in names if n in OWN_WEIGHTS or (n in packed_models(names) and n not in own)]
        if others:
            raise OptionError(
                f"{folder}: {others[0]} is there, which would be loaded instead; give another folder"
            )


def _mark(file: Path) -> tuple[int, int, int] | None:
    if isinstance(file, Address):
        return None
    found = file.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _version(parameter: torch.Tensor) -> int | None:
    """Counts changes in place; None for what is made in inference mode, which has no count."""
    return None if parameter.is_inference() else parameter._version


def _copy(file: Path, to: Path) -> None:
    if to.exists() and to.samefile(file):
        return
    partial = to.with_name(f".{to.name}.partial")
    try:
        shutil.copyfile(file, partial)
        partial.replace(to)
    finally:
        partial.unlink(missing_ok=True)
