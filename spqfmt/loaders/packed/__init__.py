"""Modules that compute from packed weights, and the memory that those weights live in."""

from spqfmt.loaders.packed.buffers import TakenBackError
from spqfmt.loaders.packed.engine import HostWeights
from spqfmt.loaders.packed.modules import PackedEmbedding, PackedLinear

__all__ = ["HostWeights", "PackedEmbedding", "PackedLinear", "TakenBackError"]
