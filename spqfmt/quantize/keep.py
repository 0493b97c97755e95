"""Method keep: what the source stores as codes is written as these codes; all else is dense."""

import torch

from spqfmt.kernels.torch_arrays import to_numpy
from spqfmt.quantize.base import MethodOptions, Weight
from spqfmt.schemes.base import Quantized
from spqfmt.schemes.dense import Dense


class Keep:
    """A KeepingMethod that changes nothing."""

    name = "keep"
    takes: frozenset[str] = frozenset()

    def check(self, options: MethodOptions) -> MethodOptions:
        """There is nothing to choose."""
        return options

    def describe(self, weight: Weight, options: MethodOptions) -> str:
        """Say which codes are kept."""
        return f"codes of {weight.form}, as they are" if weight.form else ""

    def quantize(self, weight: Weight, value: torch.Tensor, options: MethodOptions) -> Quantized:
        """A tensor without codes, as a dense one."""
        return Dense(to_numpy(value), weight.dtype)

    def keep(self, weight: Weight, stored: Quantized) -> Quantized:
        """Return the codes as the source stores them."""
        return stored


METHOD = Keep()
