"""Layers with one input, as q, k and v are, and gate and up: one native call, in which threads meet once."""

from collections.abc import Sequence

import torch

from spqfmt.loaders.packed.fused.classes import multiplied
from spqfmt.loaders.packed.modules import PackedLinear
from spqfmt.loaders.packed.weights import DirectProducts


class Siblings:
    """Layers that are only called, and with the same input."""

    def __init__(self, *layers: PackedLinear) -> None:
        self._layers = layers
        self._directs = tuple(layer._direct for layer in layers)
        self._together: DirectProducts | None = None
        engines = {id(layer.engine): layer.engine for layer in layers}
        kinds = {layer._rounding is None for layer in layers}
        if len(engines) == len(kinds) == 1 and None not in self._directs:
            (engine,), (rounds,) = engines.values(), kinds
            matrices = [layer._operand.matrix for layer in layers]
            self._together = engine.direct_products(matrices, rounds=rounds)

    def __call__(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        """What each gives, to the bit, by one native call where that can be."""
        layers = self._layers
        if self._together is not None:
            for layer, direct in zip(layers, self._directs, strict=True):
                if layer._direct is not direct:  # it has other weights now, or is tried
                    break
            else:
                found = self._together(x, [layer.bias for layer in layers])
                if found is not None:
                    return found
        return [multiplied(layer, x) for layer in layers]
