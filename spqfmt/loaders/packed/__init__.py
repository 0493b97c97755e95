"""Modules that compute from packed weights, and the memory that those weights live in."""

from spqfmt.loaders.packed.buffers import TakenBackError
from spqfmt.loaders.packed.embedding import PackedEmbedding
from spqfmt.loaders.packed.engine import HostWeights
from spqfmt.loaders.packed.modules import Packed, PackedConv1D, PackedLinear

__all__ = ["HostWeights", "Packed", "PackedConv1D", "PackedEmbedding", "PackedLinear", "TakenBackError"]
