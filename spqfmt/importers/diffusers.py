"""Folders of diffusers: a pipeline of several models, each in a folder of its own, named by model_index.json."""

from __future__ import annotations

from pathlib import Path

from spqfmt.importers._folders import PIPELINE
from spqfmt.importers._parts import open_parts
from spqfmt.importers.base import SourceModel


class DiffusersImporter:
    """A pipeline as its save_pretrained writes it."""

    kind = "diffusers"

    def accepts(self, path: Path) -> bool:
        """A folder with model_index.json, and no model's."""
        return (path / PIPELINE).is_file() and not (path / "config.json").is_file()

    def open(self, path: Path) -> SourceModel:
        """Open a pipeline's folder, as `Importer.open` says."""
        return open_parts(path, self.kind, PIPELINE)


IMPORTER = DiffusersImporter()
