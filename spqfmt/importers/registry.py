"""Finds the importers of this folder and picks the one that fits a path."""

from __future__ import annotations

import functools
from pathlib import Path

import spqfmt.importers as package
from spqfmt.errors import ImporterError
from spqfmt.importers._folders import refuse_stand_ins
from spqfmt.importers.base import Importer, SourceModel
from spqfmt.registry import find
from spqfmt.stand_ins import BEGIN_BYTES, given_path, what_came_instead
from spqfmt.wire import MAGIC


@functools.cache
def importers() -> tuple[Importer, ...]:
    """All importers, by name of their module. A module is one when it has a name `IMPORTER`."""
    return tuple(find(package, "IMPORTER"))


def find_importer(path: str | Path) -> Importer | None:
    """The importer that takes `path`, or None.

    Raises ImporterError for a path that does not exist, and for what looks like a model and is none.
    """
    path = given_path(path)
    refuse_stand_ins(path)
    return next((importer for importer in importers() if importer.accepts(path)), None)


def open_source(path: str | Path) -> SourceModel:
    """Open a model of any known kind: a folder, a GGUF file, or one file of weights.

    Reads headers and assets, no weights. Raises ImporterError with one line that names the file and what to do.
    """
    path = given_path(path)
    importer = find_importer(path)
    if importer is None:
        raise ImporterError(f"{path}: {_what_instead(path)}")
    return importer.open(path)


def _what_instead(path: Path) -> str:
    """Why a file is no source, and what to give."""
    with path.open("rb") as file:
        begin = file.read(BEGIN_BYTES)
    is_shard_list = path.name.endswith(".spq.index.json") and b'"spq-shards"' in begin
    if begin.startswith(MAGIC) or is_shard_list:
        return "is packed already; give the model that it was made from, or use `spqfmt repack`"
    if instead := what_came_instead(begin):
        return instead
    if not begin:
        return "an empty file; get it again"
    if path.name.endswith(".safetensors.index.json"):
        return "the list of a model's weights; give the folder that it lies in"
    return "not a model that can be imported; give a model's folder, or a .safetensors, .gguf or .pt file"
