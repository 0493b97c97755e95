"""Method lossless: nothing is quantized, every tensor is dense."""

import torch

from spqfmt.kernels.torch_arrays import to_numpy
from spqfmt.quantize.base import MethodOptions, Weight
from spqfmt.schemes.base import Quantized
from spqfmt.schemes.dense import Dense


class Lossless:
    """Every bit of the source is kept."""

    name = "lossless"
    takes: frozenset[str] = frozenset()

    def check(self, options: MethodOptions) -> MethodOptions:
        """There is nothing to choose."""
        return options

    def describe(self, weight: Weight, options: MethodOptions) -> str:
        """Every tensor is stored as it is."""
        return ""

    def quantize(self, weight: Weight, value: torch.Tensor, options: MethodOptions) -> Quantized:
        """The tensor as a dense one."""
        return Dense(to_numpy(value), weight.dtype)


METHOD = Lossless()
