"""Method rtn: round to nearest, the baseline without data.

Per tensor and per row: symmetric, step = max|w| / (2^(bits-1) - 1), scheme uniform. Per group: asymmetric between the
group's minimum and maximum (0 included), scheme grouped, scales in f16 where that holds them.
"""

from dataclasses import replace
from math import prod

import numpy as np
import torch

from spqfmt.quantize.base import MethodOptions, Weight, as_matrix
from spqfmt.quantize.checks import KEEP, check_bits, check_grouping
from spqfmt.quantize.grids import code_dtype, covering, fit_min_max, in_groups, scale_values
from spqfmt.schemes.base import Quantized
from spqfmt.schemes.floats import Scale
from spqfmt.schemes.group_numbers import GroupValues
from spqfmt.schemes.grouped import Grouped
from spqfmt.schemes.uniform import Uniform
from spqfmt.wire import DTYPES


class RoundToNearest:
    """Every linear layer at `bits`; embedding and head by rows, at 8 bits where not told otherwise."""

    name = "rtn"
    takes = frozenset({"bits", "granularity", "group_size", "embedding_bits"})

    def check(self, options: MethodOptions) -> MethodOptions:
        """8 bits per row; a group size means groups, 64 by default."""
        bits, embedding_bits = check_bits(options, 8)
        granularity, group_size = check_grouping(options, 64)
        return replace(
            options,
            bits=bits,
            granularity=granularity,
            group_size=group_size,
            embedding_bits=embedding_bits,
        )

    def describe(self, weight: Weight, options: MethodOptions) -> str:
        """Say the bits and what shares a scale."""
        bits, granularity = self._choice(weight, options)
        if bits == KEEP:
            return ""
        size = f" of {options.group_size}" if granularity == "group" else ""
        return f"{bits} bits per {granularity}{size}"

    @staticmethod
    def _choice(weight: Weight, options: MethodOptions) -> tuple[int, str]:
        assert options.bits is not None
        assert options.embedding_bits is not None
        assert options.granularity is not None
        if weight.role == "linear":
            return options.bits, options.granularity
        if weight.role in {"embedding", "head"}:
            return options.embedding_bits, "row"
        return KEEP, ""

    def most_bytes(self, weight: Weight, options: MethodOptions) -> int:
        """Codes, scales in float32, zero points."""
        bits, granularity = self._choice(weight, options)
        columns = weight.shape[-2 if weight.transposed else -1]
        rows = prod(weight.shape) // columns
        if granularity != "group":
            scales = rows if granularity == "row" else 0
            return (prod(weight.shape) * DTYPES[_row_dtype(bits)].bits + 32 * scales + 7) // 8
        assert options.group_size is not None
        n_groups = rows * -(-columns // min(options.group_size, columns))
        code_bits = DTYPES[code_dtype(bits)].bits
        return ((prod(weight.shape) + n_groups) * code_bits + 32 * n_groups + 7) // 8

    def quantize(self, weight: Weight, value: torch.Tensor, options: MethodOptions) -> Quantized:
        """Round the matrix at the granularity that `describe` told."""
        bits, granularity = self._choice(weight, options)
        matrix = as_matrix(weight, value)
        if granularity == "group":
            assert options.group_size is not None
            return round_groups(matrix, bits, options.group_size)
        return round_symmetric(matrix, bits, per_row=granularity == "row")


def _row_dtype(bits: int) -> str:
    return "i2" if bits == 2 else "i4" if bits <= 4 else "i8"


def round_symmetric(matrix: torch.Tensor, bits: int, *, per_row: bool) -> Uniform:
    """Codes from -(2^(bits-1) - 1) to 2^(bits-1) - 1 with one step, or one a row; `matrix` float32 [out, in].

    A row (or tensor) of zeros gets step 1 and codes 0.
    """
    highest = 2 ** (bits - 1) - 1
    largest = matrix.abs().amax(dim=1 if per_row else (0, 1), keepdim=True)
    step = torch.where(largest > 0, covering(largest, highest), 1.0)
    codes = torch.round(matrix / step).clamp_(-highest, highest).to(torch.int8).numpy()
    dtype = _row_dtype(bits)
    if per_row:
        return Uniform(codes, np.float32(1), dtype, Scale(step[:, 0].numpy(), "f32"))
    return Uniform(codes, np.float32(step.item()), dtype)


def round_groups(matrix: torch.Tensor, bits: int, group_size: int) -> Grouped:
    """Round each group of columns between its minimum and maximum, to codes 0 .. 2^bits - 1.

    `matrix` is float32 [out, in]. The codes are rounded against scale and zero point as stored (the latter a whole
    number), not before.
    """
    rows, columns = matrix.shape
    groups = in_groups(matrix, group_size)
    grid = fit_min_max(groups, bits)
    codes = torch.round(groups / grid.scale[:, :, None]) + grid.zero[:, :, None]
    codes = codes.clamp_(0, 2**bits - 1).to(torch.uint8).reshape(rows, -1)[:, :columns]
    return Grouped(
        codes=codes.contiguous().numpy(),
        code_dtype=code_dtype(bits),
        group_size=group_size,
        bits=bits,
        scale=scale_values(grid.scale, grid.dtype),
        zero_point=GroupValues(grid.zero.to(torch.uint8).numpy(), code_dtype(bits)),
    )


METHOD = RoundToNearest()
