"""Modules of a packed model that take fewer calls for a token than torch's operations do, with the same results.

No class is known by its name: a module is taken over where what it computes was tried (decisions 0049 and 0052).
"""

import os
from typing import Final

from torch import nn

from spqfmt.loaders.packed.fused.attentions import fuse_attentions
from spqfmt.loaders.packed.fused.gates import fuse_gates
from spqfmt.loaders.packed.fused.layers import fuse_layers
from spqfmt.loaders.packed.fused.norms import fuse_norms

SWITCH: Final = "SPQFMT_FUSE"
"""The environment variable that leaves modules to torch where it is 0."""


def fuse(model: nn.Module) -> int:
    """Let modules with packed weights on the CPU compute natively from now on, unless SPQFMT_FUSE is 0. How many do."""
    if os.environ.get(SWITCH) == "0":
        return 0
    return fuse_norms(model) + fuse_gates(model) + fuse_attentions(model) + fuse_layers(model)
