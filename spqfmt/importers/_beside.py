"""What lies beside the weights in a folder: what travels with them, and what is left out, with the reason.

A file travels when FORMAT.md 7.1 lets it become a file again: config, tokenizer, templates, licence, model card; code
too, as text. A folder below travels so as well, unless it holds weights: those are another model, an export or a
checkpoint of training, except where modules.json of sentence-transformers, or model_index.json of diffusers, names
the folder as a part of this model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from spqfmt import wire
from spqfmt.asset_names import as_files, is_asset_name
from spqfmt.importers._folders import ADAPTER, MODULES, PIPELINE, ROUTER
from spqfmt.importers._source_file import SourceFile

_WEIGHTS = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack", ".gguf", ".onnx",
    ".onnx_data", ".npz", ".npy", ".tflite", ".ot", ".index.json",
)  # fmt: skip
MODULE_WEIGHTS = "pytorch_model.bin"
"""A module of sentence-transformers has its weights in it, or in a .safetensors file, which is an asset."""
# Assets are read whole, and are small files (FORMAT.md 7): the largest tokenizers have some 35 MB.
_MAX_FILE_BYTES = 128 << 20
_MAX_TOTAL_BYTES = 512 << 20
# One asset more holds literals.
_MAX_FILES = wire.MAX_ASSETS - 1
# Of a folder below: one with more files is a data set.
_MAX_IN_FOLDER = 1000


@dataclass(frozen=True)
class Beside:
    """Files that travel, by the names that they have in a file, in order; and names that do not, with the reason.

    A folder of which nothing travels stands for its files, as "folder/".
    """

    kept: Mapping[str, SourceFile]
    left_out: Mapping[str, str]
    named: Mapping[str, SourceFile]
    """All of these files, and those of folders that are left out but not hidden."""
    weights: frozenset[str]
    """Names of those that hold weights."""
    needed: frozenset[str]
    """Names of those that are neither the model's weights nor kept, and without which it does not load."""

    def without(self, own: Mapping[str, SourceFile]) -> dict[str, str]:
        """What is left out where `own` hold the model's weights; a folder of which these are all is not."""
        folders = {name.partition("/")[0] for name in own}
        others = {name.partition("/")[0] for name in self.named if name not in own}
        return {
            name: reason
            for name, reason in self.left_out.items()
            if name not in own and not (name.endswith("/") and name[:-1] in folders - others)
        }


def files_beside(folder: Path) -> Beside:
    """Find all files of the folder. Those of the model's own weights are among what is left out."""
    files: dict[str, SourceFile] = {}
    left_out: dict[str, str] = {}
    parts = part_folders(folder)
    all_names: list[str] = []
    for entry in sorted(folder.iterdir()):
        if entry.is_dir():
            inside = [] if entry.name.startswith(".") or entry.is_symlink() else list(_walk(folder, entry))
            if len(inside) <= _MAX_IN_FOLDER:
                all_names += inside
            reason = _why_not_folder(entry, inside, is_part=entry.name in parts)
            if reason:
                left_out[f"{entry.name}/"] = reason
                continue
            names = inside
        else:
            names = [entry.name]
            all_names += names
        _divide(folder, names, files, left_out)
    _leave_out_clashes(files, left_out)
    _leave_out_large(files, left_out)
    named = {
        name: files.get(name) or SourceFile(folder / name)
        for name in all_names
        if (folder / name).is_file() and _is_text(name)
    }
    weights = frozenset(name for name in named if _is_weights(name))
    needed = frozenset(name for name in named if name not in files and _is_needed(name, parts))
    return Beside(kept=files, left_out=left_out, named=named, weights=weights, needed=needed)


def _is_text(name: str) -> bool:
    """Whether a file's name can stand in an index: it may be no UTF-8, and Python has surrogates then."""
    return len(name.encode(errors="replace")) <= wire.MAX_NAME_BYTES and not any(
        "\ud800" <= character <= "\udfff" for character in name
    )


def _is_weights(name: str) -> bool:
    lower = name.lower()
    return lower.endswith((*_WEIGHTS, ".spq")) and not lower.endswith(".index.json")


def _is_needed(name: str, parts: frozenset[str]) -> bool:
    """An adapter's config, which no asset may be, and the weights of modules, which torch may have written."""
    folder, _, last = name.rpartition("/")
    return name == ADAPTER or (folder.partition("/")[0] in parts and last == MODULE_WEIGHTS)


def _divide(folder: Path, names: list[str], files: dict[str, SourceFile], left_out: dict[str, str]) -> None:
    for name in names:
        reason = _why_not(folder / name, name)
        if reason:
            left_out[name] = reason
        else:
            files[name] = SourceFile(folder / name)


def _walk(folder: Path, below: Path) -> Iterator[str]:
    """Names of the files below, a few more than are allowed at most; links to folders are not followed."""
    n_files = 0
    for root, folders, files in os.walk(below):
        folders.sort()
        for name in sorted(files):
            yield Path(root, name).relative_to(folder).as_posix()
            n_files += 1
        if n_files > _MAX_IN_FOLDER:
            return


def part_folders(folder: Path) -> frozenset[str]:
    """Folders that are parts of the model.

    model_index.json of diffusers names them, or modules.json and router_config.json of sentence-transformers.
    """
    try:
        if (folder / PIPELINE).is_file():
            named = json.loads((folder / PIPELINE).read_bytes())
            parts = {name: of for name, of in named.items() if isinstance(of, list) and "/" not in name}
            return frozenset({*parts, *_more_of_several(folder, parts)})
        modules = [str(module["path"]) for module in json.loads((folder / MODULES).read_bytes())]
        if (folder / ROUTER).is_file():
            modules += json.loads((folder / ROUTER).read_bytes())["types"]
        return frozenset(path.partition("/")[0] for path in modules) - {"", "."}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return frozenset()


def _more_of_several(folder: Path, parts: Mapping[str, list[object]]) -> Iterator[str]:
    """The numbered folders of parts that are several models of one kind: diffusers numbers all but the first."""
    several = [name for name, of in parts.items() if str(of[-1:]).startswith("['Multi")]
    for entry in folder.iterdir():
        stem, _, number = entry.name.rpartition("_")
        if stem in several and number.isdecimal():
            yield entry.name


def _why_not_folder(folder: Path, names: list[str], *, is_part: bool) -> str:
    if folder.name.startswith("."):
        return "hidden"
    if folder.is_symlink():
        return "a link to a folder"
    if not names:
        return "empty"
    if len(names) > _MAX_IN_FOLDER:
        return f"a folder of more than {_MAX_IN_FOLDER} files"
    if not is_part and any(name.lower().endswith(_WEIGHTS) for name in names):
        return "in a folder with weights of its own"
    return "" if as_files(names) else "no kind of file that travels with a model"


def _why_not(file: Path, name: str) -> str:
    """Why a file does not travel; empty for one that does."""
    lower = name.rpartition("/")[2].lower()
    if file.is_symlink() and not file.exists():
        return "a link to a file that is missing"
    if not file.is_file():
        return "not a plain file"
    if lower.startswith("."):
        return "hidden"
    if lower.startswith("adapter_"):
        return "an adapter, which is no part of the model"
    if as_files([name]):
        return ""
    if lower.endswith(_WEIGHTS):
        return "other weights"
    if lower.endswith((".spq", ".spq.index.json")):
        return "a packed model"
    if not is_asset_name(name):
        return "a name that a file cannot hold (letters, digits, dot, dash and underscore)"
    return "no kind of file that travels with a model"


def _leave_out_clashes(files: dict[str, SourceFile], left_out: dict[str, str]) -> None:
    allowed = as_files(files)
    for name in [name for name in files if name not in allowed]:
        del files[name]
        left_out[name] = "its name is another's but for case"


def _leave_out_large(files: dict[str, SourceFile], left_out: dict[str, str]) -> None:
    """The largest go first, so that the config and the tokenizer do not give way to a data set."""
    total = 0
    for number, name in enumerate(sorted(files, key=lambda name: files[name].n_bytes)):
        n_bytes = files[name].n_bytes
        total += n_bytes
        if n_bytes > _MAX_FILE_BYTES or total > _MAX_TOTAL_BYTES or number >= _MAX_FILES:
            del files[name]
            left_out[name] = "too large, or one of too many, for a file that travels with a model"
