"""Names of files by which a folder is told to hold a packed model."""

from collections.abc import Sequence

OWN_WEIGHTS = frozenset(
    {"model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"}
)
"""Weights that transformers finds itself."""
_INDEX, _FILE = ".spq.index.json", ".spq"


def packed_models(names: Sequence[str]) -> list[str]:
    """The packed models among files of these names: those in shards by their index, or else single files."""
    return [n for n in names if n.endswith(_INDEX)] or [n for n in names if n.endswith(_FILE)]
