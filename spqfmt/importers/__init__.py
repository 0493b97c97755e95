"""Foreign checkpoints in, as source tensors. One file, one importer: `registry.py` finds them by folder."""

from spqfmt.importers.base import Asset, Importer, SourceModel, SourceTensor
from spqfmt.importers.registry import find_importer, importers, open_source

__all__ = ["Asset", "Importer", "SourceModel", "SourceTensor", "find_importer", "importers", "open_source"]
