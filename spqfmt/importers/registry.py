"""Finds the importers of this folder and picks the one that fits a path."""

from __future__ import annotations

import functools
from pathlib import Path

import spqfmt.importers as package
from spqfmt.errors import ImporterError
from spqfmt.importers.base import Importer, SourceModel
from spqfmt.registry import find


@functools.cache
def importers() -> tuple[Importer, ...]:
    """All importers, by name of their module. A module is one when it has a name `IMPORTER`."""
    return tuple(find(package, "IMPORTER"))


def find_importer(path: str | Path) -> Importer | None:
    """The importer that takes `path`, or None. A path that does not exist raises ImporterError."""
    path = Path(path)
    if not path.exists():
        raise ImporterError(f"{path}: no such file or folder")
    return next((importer for importer in importers() if importer.accepts(path)), None)


def open_source(path: str | Path) -> SourceModel:
    """Open a model of any known kind: a Hugging Face folder of safetensors, or a GGUF file.

    Reads headers and assets, no weights. Raises ImporterError with one line that names the file and what to do.
    """
    importer = find_importer(path)
    if importer is None:
        raise ImporterError(
            f"{path}: not a model that can be imported; give a folder of .safetensors files or a .gguf file"
        )
    return importer.open(Path(path))
