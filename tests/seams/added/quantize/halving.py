"""Two methods in one module, rows of a table: matrices on a grid of halves, with products or without."""

from dataclasses import dataclass

import numpy as np
import torch
from spqfmt.schemes.halves import Halves
from spqfmt.schemes.plain_halves import PlainHalves

from spqfmt.quantize.base import MethodOptions, Weight, as_matrix


@dataclass(frozen=True)
class Halving:
    name: str
    scheme: type[Halves]
    takes: frozenset[str] = frozenset()

    def check(self, options: MethodOptions) -> MethodOptions:
        return options

    def describe(self, weight: Weight, options: MethodOptions) -> str:
        return "" if weight.role == "other" else "halves"

    def quantize(self, weight: Weight, value: torch.Tensor, options: MethodOptions) -> Halves:
        matrix = as_matrix(weight, value)
        step = matrix.abs().max() / 127
        codes = torch.floor(matrix / step).clamp(-128, 127).to(torch.int8).contiguous().numpy()
        return self.scheme(codes, np.float32(step.item()))


METHOD_ROWS = (Halving("halving", Halves), Halving("plain_halving", PlainHalves))
