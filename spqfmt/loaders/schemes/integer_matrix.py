"""Uniform matrices stored by rows: products of float activations, and of tokens that are rounded to int8."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from spqfmt.codecs.base import Bytes
from spqfmt.codecs.elements import Elements
from spqfmt.codecs.threads import n_threads
from spqfmt.kernels.dequantize import dequantize_uniform
from spqfmt.kernels.multiply import CodeMatrix
from spqfmt.kernels.torch_arrays import to_torch
from spqfmt.loaders.schemes.base import Lend
from spqfmt.loaders.schemes.matrix import NAMES, TYPES, PackedMatrix, floats
from spqfmt.loaders.schemes.unpacked import outliers_of, unpacked
from spqfmt.residency.parts import Part
from spqfmt.schemes.floats import narrow
from spqfmt.schemes.uniform import UniformSides, dequantize

# int32 sums of products of two int8 hold this many columns; one power of two below the bound.
_INT8_COLUMNS = 1 << 16


class IntegerMatrix(PackedMatrix[UniformSides]):
    """step * code * row scale * column scale."""

    def __init__(self, parts: tuple[Part, ...], sides: UniformSides, whole: Bytes | None) -> None:
        super().__init__(parts, sides, whole)
        self._plain_sums = sides.outliers is None and self._n_columns <= _INT8_COLUMNS
        self._codes: torch.Tensor | None = None
        if whole is not None and self._plain_sums and parts[0].dtype == "i8":
            self._codes = torch.from_numpy(whole.view(np.int8)).view(sides.record.matrix_shape).t()

    def code_matrix(self) -> CodeMatrix:
        """Make the native matrix of codes with scales."""
        sides = self._sides
        return CodeMatrix(
            self.record.matrix_shape,
            self._parts[0].dtype,
            row=sides.row,
            column=sides.column,
            outliers=sides.outliers,
            permutation=sides.permutation,
            order=sides.order,
        )

    def fill(self, part: Part, codes: Bytes, first: int, rows: slice, out: Elements, name: str) -> None:
        """Dequantize rows by the native kernel."""
        dequantize_uniform(
            codes,
            part.dtype,
            self._sides.row[rows],
            column=self._sides.column,
            out=out,
            out_dtype=name,
            first=first * self._n_columns,
            n_threads=n_threads(),
        )

    def some_rows(
        self, part: Part, codes: Bytes, rows: NDArray[np.int64], dtype: torch.dtype
    ) -> torch.Tensor | None:
        """Return rows of int8 codes without outliers; None for others."""
        if part.dtype != "i8" or self._sides.outliers is not None:
            return None
        chosen = codes.view(np.int8).reshape(-1, self._n_columns)[rows - part.first]
        weights = dequantize(chosen, np.float32(1), self._sides.row[rows], self._sides.column)
        return to_torch(narrow(weights, NAMES[dtype]), NAMES[dtype], weights.shape)

    def multiply_whole(
        self, x: torch.Tensor, bias: nn.Parameter | None, *, int8_activations: bool | None
    ) -> torch.Tensor | None:
        """Multiply, as `HostMatrix.multiply_whole` says, with rounded activations where they are wanted."""
        if not int8_activations:
            return super().multiply_whole(x, bias, int8_activations=False)
        if self._codes is None or x.dtype not in TYPES:
            return None
        rounded, scales = self._round(x, x.numel() // self._n_columns)
        y = x.new_empty((*x.shape[:-1], self._n_rows))
        self._finish(torch._int_mm(rounded, self._codes), scales, 0, n_rows=self._n_rows, y=y, bias=bias)
        return y

    def product(
        self,
        tokens: torch.Tensor,
        bias: nn.Parameter | None,
        lend: Lend,
        workspace: Bytes,
        *,
        int8_activations: bool | None,
    ) -> torch.Tensor:
        """Multiply as PackedMatrix does, or integers by integers."""
        if not int8_activations:
            return super().product(tokens, bias, lend, workspace, int8_activations=False)
        if self._plain_sums:
            return self._multiply_int8(tokens, bias, lend)
        return self._multiply_int8_exactly(tokens, bias, lend)

    def _round(self, x: torch.Tensor, n_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens scaled by columns, then rounded to -127..127: int8 [n_tokens, columns], float32 [n_tokens]."""
        assert self._matrix is not None
        if not x.is_contiguous():
            x = x.contiguous()
        codes = torch.empty(n_tokens, self._n_columns, dtype=torch.int8)
        scales = torch.empty(n_tokens)
        self._matrix.round(
            x.data_ptr(),
            TYPES[x.dtype],
            n_tokens,
            codes.data_ptr(),
            scales.data_ptr(),
            n_threads(),
        )
        return codes, scales

    def _finish(
        self,
        sums: torch.Tensor,
        scales: torch.Tensor,
        first: int,
        n_rows: int,
        y: torch.Tensor,
        bias: nn.Parameter | None,
    ) -> None:
        assert self._matrix is not None
        self._matrix.finish(
            sums.data_ptr(),
            scales.data_ptr(),
            first,
            n_rows,
            len(scales),
            y.data_ptr(),
            TYPES[y.dtype],
            *floats(bias),
            n_threads(),
        )

    def _multiply_int8(self, x: torch.Tensor, bias: nn.Parameter | None, lend: Lend) -> torch.Tensor:
        """Integer products of rows without outliers."""
        rounded, scales = self._round(x, len(x))
        y = x.new_empty(len(x), self._n_rows)
        for part, stored in self._lent(lend):
            codes = torch.from_numpy(unpacked(part, stored)).view(-1, self._n_columns)
            sums = torch._int_mm(rounded, codes.t())  # torch offers its int8 product under no other name
            self._finish(sums, scales, part.first, n_rows=len(codes), y=y, bias=bias)
            del codes, stored
        return y

    def _multiply_int8_exactly(self, x: torch.Tensor, bias: nn.Parameter | None, lend: Lend) -> torch.Tensor:
        """Integer products summed in float32, where outliers replace codes."""
        rounded, scales = self._round(x, len(x))
        y = self._products_exactly(rounded, lend) * scales.unsqueeze(1)
        if self._order is not None:
            y = torch.empty_like(y).index_copy_(1, self._order, y)
        return y if bias is None else y + bias

    def _products_exactly(self, rounded: torch.Tensor, lend: Lend) -> torch.Tensor:
        """int8 [n_tokens, columns] times it, in units of the tokens' scales: float32 [n_tokens, stored rows]."""
        sides = self._sides
        y = torch.zeros(len(rounded), self._n_rows)
        for part, stored in self._lent(lend):
            codes = torch.from_numpy(unpacked(part, stored)).view(-1, self._n_columns)
            y[:, part.first : part.stop] = _int8_product(rounded, codes.t())
            if sides.outliers is not None:
                _correct(y, rounded, part, sides=sides, codes=codes)
            del codes, stored
        return y * torch.from_numpy(sides.row)

    def scaled(self, x: torch.Tensor) -> torch.Tensor:
        """`x` float32 [n_tokens, columns] times the columns' scales, as it is rounded for integer products."""
        return x if self._sides.column is None else x * torch.from_numpy(self._sides.column)

    def multiply_rounded(self, x: torch.Tensor, scales: torch.Tensor, lend: Lend) -> torch.Tensor:
        """Integer products of float32 [n_tokens, columns], rounded by `scales` [n_tokens]: float32 [n_tokens, rows].

        Of a matrix without another order of columns or rows.
        """
        each = scales.unsqueeze(1)
        rounded = (self.scaled(x) / each).round().clamp(-127, 127).to(torch.int8)
        return self._products_exactly(rounded, lend) * each


def _int8_product(x: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """int8 [n, columns] times int8 [columns, rows], exact, as float32; int32 sums of at most _INT8_COLUMNS columns."""
    x = x.contiguous()
    if x.shape[1] <= _INT8_COLUMNS:
        return torch._int_mm(x, codes).float()
    total = torch.zeros(len(x), codes.shape[1], dtype=torch.int64)
    for first in range(0, x.shape[1], _INT8_COLUMNS):
        columns = slice(first, first + _INT8_COLUMNS)
        total += torch._int_mm(x[:, columns].contiguous(), codes[columns])
    return total.float()


def _correct(
    y: torch.Tensor, rounded: torch.Tensor, part: Part, sides: UniformSides, codes: torch.Tensor
) -> None:
    """Put the outliers' share in place of what their codes gave; `y` is still in units of row and token scales."""
    assert sides.outliers is not None
    rows, columns, values = outliers_of(sides.outliers, part.first, part.stop)
    here = codes.numpy()[rows, columns]
    rows = rows + part.first
    units = sides.row[rows] if sides.column is None else sides.row[rows] * sides.column[columns]
    # A weight without a scale is 0 whatever its code, and an outlier there has no unit to be counted in.
    in_units = np.divide(values, units, out=np.zeros_like(values), where=units != 0) - here
    at = torch.from_numpy(columns.astype(np.int64))
    y.index_add_(1, torch.from_numpy(rows), rounded[:, at].float() * torch.from_numpy(in_units))
