"""Folders of sentence-transformers whose models are all in folders below, named by modules.json and router_config.json.

Where the first module is at the root, as a rule, the folder is that model's, and the other modules lie beside it.
"""

from __future__ import annotations

from pathlib import Path

from spqfmt.importers._folders import MODULES
from spqfmt.importers._parts import open_parts, parts_with_weights
from spqfmt.importers._weight_files import has_weights
from spqfmt.importers.base import SourceModel


class EmbeddersImporter:
    """A router, or a folder of an early version."""

    kind = "sentence-transformers"

    def accepts(self, path: Path) -> bool:
        """A folder with modules.json and no weights but in folders that it names."""
        if not path.is_dir() or not (path / MODULES).is_file() or has_weights(path):
            return False
        return bool(parts_with_weights(path))

    def open(self, path: Path) -> SourceModel:
        """Open a folder of modules, as `Importer.open` says."""
        return open_parts(path, self.kind, MODULES)


IMPORTER = EmbeddersImporter()
