"""y = x W^T from the parts of a packed matrix. All of it on the CPU, without gradients."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import nn

from spqfmt.codecs.base import Bytes
from spqfmt.codecs.elements import CARRIERS
from spqfmt.codecs.threads import n_threads
from spqfmt.kernels.dequantize import FLOATS
from spqfmt.kernels.multiply import NO_BIAS, CodeMatrix, Floats, Groups
from spqfmt.kernels.torch_arrays import to_torch
from spqfmt.loaders.packed.buffers import View
from spqfmt.loaders.packed.tiles import (
    NAMES,
    dequantize_columns,
    dequantize_rows,
    outliers_of,
    unpacked,
)
from spqfmt.residency.parts import Part, by_columns
from spqfmt.residency.sides import Sides
from spqfmt.residency.workspace import rows_at_once

FEW_TOKENS = 32
"""Up to here the native product is faster than dequantizing to the activations' dtype and torch's product."""
# int32 sums of products of two int8 hold this many columns; one power of two below the bound.
_INT8_COLUMNS = 1 << 16
_TYPES = {dtype: FLOATS[name][0] for dtype, name in NAMES.items()}

Lend = Callable[[Part], AbstractContextManager[View]]


class PackedMatrix:
    """One tensor's products. What does not change from call to call is made once.

    Of the uniform scheme it is stored by rows; for others see turned.py.

    `whole`: the bytes of all parts one after the other, where they are decoded in memory; else None, and `lend` gives
    the bytes of one part at a time.
    """

    def __init__(self, parts: tuple[Part, ...], sides: Sides, whole: Bytes | None) -> None:
        self._parts = parts
        self._sides = sides
        record = sides.record
        self._n_rows, self._n_columns = record.matrix_shape
        self._by_columns = by_columns(record)
        self._order = None if sides.order is None or self._by_columns else torch.from_numpy(sides.order)
        self._permutation = None if sides.permutation is None else torch.from_numpy(sides.permutation)
        self._whole = whole
        self._matrix: CodeMatrix | None = None
        if record.scheme != "dense":
            self._matrix = CodeMatrix(
                record.matrix_shape,
                parts[0].dtype,
                row=sides.row,
                column=sides.column,
                # Stored by columns, outliers are put in place by the code that sums over columns.
                outliers=None if self._by_columns else sides.outliers,
                permutation=sides.permutation,
                order=None if self._by_columns else sides.order,
                groups=None if self._by_columns else _groups(sides),
            )
        self._uniform = record.scheme == "uniform"
        self._plain_sums = self._uniform and sides.outliers is None and self._n_columns <= _INT8_COLUMNS
        self._weight: torch.Tensor | None = None
        self._codes: torch.Tensor | None = None
        if whole is not None and record.scheme == "dense":
            stored = whole.view(CARRIERS[parts[0].dtype])
            self._weight = to_torch(stored, parts[0].dtype, record.matrix_shape)
        if whole is not None and self._plain_sums and parts[0].dtype == "i8":
            self._codes = torch.from_numpy(whole.view(np.int8)).view(record.matrix_shape).t()

    def multiply_whole(
        self, x: torch.Tensor, bias: nn.Parameter | None, *, int8_activations: bool
    ) -> torch.Tensor | None:
        """As `multiply`, without a part lent and without scratch memory; None where that cannot be."""
        if self._weight is not None and self._weight.dtype == x.dtype:
            return nn.functional.linear(x, self._weight, bias)
        n_tokens = x.numel() // self._n_columns
        if int8_activations:
            if self._codes is None or x.dtype not in _TYPES:
                return None
            rounded, scales = self._round(x, n_tokens)
            y = x.new_empty((*x.shape[:-1], self._n_rows))
            self._finish(torch._int_mm(rounded, self._codes), scales, 0, self._n_rows, y, bias)
            return y
        if n_tokens > FEW_TOKENS or self._whole is None or self._matrix is None or self._by_columns:
            return None
        if x.dtype not in _TYPES:
            return None
        if not x.is_contiguous():
            x = x.contiguous()
        y = x.new_empty((*x.shape[:-1], self._n_rows))
        self._matrix.multiply(
            self._whole,
            0,
            self._n_rows,
            x.data_ptr(),
            _TYPES[x.dtype],
            n_tokens,
            y.data_ptr(),
            *_floats(bias),
            n_threads(),
        )
        return y

    def multiply(
        self,
        x: torch.Tensor,
        bias: nn.Parameter | None,
        lend: Lend,
        workspace: Bytes,
        *,
        int8_activations: bool,
    ) -> torch.Tensor:
        """Products of `x` [..., columns] with the matrix: [..., rows], in x's dtype.

        With `int8_activations`, where the codes are the uniform scheme's, tokens are rounded to int8 with a scale each.
        `workspace` is scratch memory that nobody else uses meanwhile.
        """
        tokens = x.reshape(-1, self._n_columns).contiguous()
        if tokens.dtype not in _TYPES:
            tokens = tokens.float()
        if int8_activations and self._plain_sums:
            y = self._multiply_int8(tokens, bias, lend)
        elif int8_activations and self._uniform:
            y = self._multiply_int8_exactly(tokens, bias, lend)
        elif self._by_columns:
            y = self._multiply_columns(tokens, bias, lend)
        elif len(tokens) <= FEW_TOKENS and self._matrix is not None:
            y = self._multiply_few(tokens, bias, lend)
        else:
            y = self._multiply_many(tokens, bias, lend, workspace)
        return y.to(x.dtype).reshape(*x.shape[:-1], self._n_rows)

    def values(self, lend: Lend, workspace: Bytes, dtype: torch.dtype) -> torch.Tensor:
        """The matrix, [rows, columns] of `dtype`, in memory of its own. `workspace` as in `multiply`."""
        out = torch.empty(self._n_rows, self._n_columns, dtype=dtype)
        step = rows_at_once(self._n_columns, dtype.itemsize, workspace.size)
        for part, codes in self._lent(lend):
            if self._by_columns:
                columns, matrix = dequantize_columns(part, self._sides, codes)
                at = torch.from_numpy(columns)
                at = at if self._permutation is None else self._permutation[at]
                out[:, at] = torch.from_numpy(matrix).to(dtype)
                continue
            for first in range(0, part.stop - part.first, step):
                stop = min(first + step, part.stop - part.first)
                rows = slice(part.first + first, part.first + stop)
                tile = dequantize_rows(part, self._sides, codes, first, stop, dtype, workspace)
                if self._permutation is not None:
                    tile = torch.empty_like(tile).index_copy_(1, self._permutation.long(), tile)
                out[rows if self._order is None else self._order[rows]] = tile
                del tile
            del codes
        return out

    def _lent(self, lend: Lend) -> Iterator[tuple[Part, Bytes]]:
        begin = 0
        for part in self._parts:
            if self._whole is not None:
                yield part, self._whole[begin : begin + part.decoded_bytes]
                begin += part.decoded_bytes
                continue
            with lend(part) as view:
                yield part, view.bytes

    def _multiply_few(self, x: torch.Tensor, bias: nn.Parameter | None, lend: Lend) -> torch.Tensor:
        assert self._matrix is not None
        y = x.new_empty(len(x), self._n_rows)
        there, added, n = Floats(x.data_ptr(), _TYPES[x.dtype]), _floats(bias), n_threads()
        for part, codes in self._lent(lend):
            n_rows = part.stop - part.first
            self._matrix.multiply(codes, part.first, n_rows, *there, len(x), y.data_ptr(), *added, n)
        return y

    def _multiply_many(
        self, x: torch.Tensor, bias: nn.Parameter | None, lend: Lend, workspace: Bytes
    ) -> torch.Tensor:
        """torch's product with one tile of dequantized rows after the other."""
        if self._permutation is not None:
            x = x[:, self._permutation]
        y = x.new_empty(len(x), self._n_rows)
        added = None if bias is None else bias.to(x.dtype)
        # A dense part of x's dtype is used where it is; any other goes through the workspace.
        step = rows_at_once(self._n_columns, x.dtype.itemsize, workspace.size)
        for part, codes in self._lent(lend):
            for first in range(0, part.stop - part.first, step):
                stop = min(first + step, part.stop - part.first)
                stored = slice(part.first + first, part.first + stop)
                outputs = stored if self._order is None else self._order[stored]
                tile = dequantize_rows(part, self._sides, codes, first, stop, x.dtype, workspace)
                product = nn.functional.linear(x, tile, None if added is None else added[outputs])
                del tile
                if stop - first == self._n_rows and self._order is None:
                    return product
                y[:, outputs] = product
            del codes
        return y

    def _multiply_columns(self, x: torch.Tensor, bias: nn.Parameter | None, lend: Lend) -> torch.Tensor:
        """Sums over parts of columns, in float32."""
        tokens = x.float() if self._permutation is None else x[:, self._permutation].float()
        y = torch.zeros(len(x), self._n_rows)
        for part, codes in self._lent(lend):
            columns, matrix = dequantize_columns(part, self._sides, codes)
            y += tokens[:, torch.from_numpy(columns)] @ torch.from_numpy(matrix).t()
            del codes
        return y if bias is None else y + bias

    def _round(self, x: torch.Tensor, n_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens scaled by columns, then rounded to -127..127: int8 [n_tokens, columns], float32 [n_tokens]."""
        assert self._matrix is not None
        if not x.is_contiguous():
            x = x.contiguous()
        codes = torch.empty(n_tokens, self._n_columns, dtype=torch.int8)
        scales = torch.empty(n_tokens)
        self._matrix.round(
            x.data_ptr(),
            _TYPES[x.dtype],
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
            _TYPES[y.dtype],
            *_floats(bias),
            n_threads(),
        )

    def _multiply_int8(self, x: torch.Tensor, bias: nn.Parameter | None, lend: Lend) -> torch.Tensor:
        """Integer products of rows without outliers."""
        rounded, scales = self._round(x, len(x))
        y = x.new_empty(len(x), self._n_rows)
        for part, stored in self._lent(lend):
            codes = torch.from_numpy(unpacked(part, stored)).view(-1, self._n_columns)
            sums = torch._int_mm(rounded, codes.t())  # torch offers its int8 product under no other name
            self._finish(sums, scales, part.first, len(codes), y, bias)
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
        assert sides.row is not None
        y = torch.zeros(len(rounded), self._n_rows)
        for part, stored in self._lent(lend):
            codes = torch.from_numpy(unpacked(part, stored)).view(-1, self._n_columns)
            y[:, part.first : part.stop] = _int8_product(rounded, codes.t())
            if sides.outliers is not None:
                _correct(y, rounded, part, sides, codes)
            del codes, stored
        return y * torch.from_numpy(sides.row)

    def scaled(self, x: torch.Tensor) -> torch.Tensor:
        """`x` float32 [n_tokens, columns] times the columns' scales, as it is rounded for integer products."""
        return x if self._sides.column is None else x * torch.from_numpy(self._sides.column)

    def multiply_rounded(self, x: torch.Tensor, scales: torch.Tensor, lend: Lend) -> torch.Tensor:
        """Integer products of float32 [n_tokens, columns], rounded by `scales` [n_tokens]: float32 [n_tokens, rows].

        Of a uniform matrix without another order of columns or rows.
        """
        each = scales.unsqueeze(1)
        rounded = (self.scaled(x) / each).round().clamp(-127, 127).to(torch.int8)
        return self._products_exactly(rounded, lend) * each


def _groups(sides: Sides) -> Groups | None:
    scale = sides.group_numbers("scale") if sides.record.scheme == "grouped" else None
    if scale is None:
        return None
    return Groups(sides.group_size, scale, sides.group_numbers("zero_point"), sides.group_numbers("minimum"))


def _floats(bias: nn.Parameter | None) -> Floats:
    return NO_BIAS if bias is None else Floats(bias.data_ptr(), _TYPES[bias.dtype])


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


def _correct(y: torch.Tensor, rounded: torch.Tensor, part: Part, sides: Sides, codes: torch.Tensor) -> None:
    """Put the outliers' share in place of what their codes gave; `y` is still in units of row and token scales."""
    assert sides.outliers is not None
    assert sides.row is not None
    rows, columns, values = outliers_of(sides.outliers, part.first, part.stop)
    here = codes.numpy()[rows, columns]
    rows = rows + part.first
    units = sides.row[rows] if sides.column is None else sides.row[rows] * sides.column[columns]
    # A weight without a scale is 0 whatever its code, and an outlier there has no unit to be counted in.
    in_units = np.divide(values, units, out=np.zeros_like(values), where=units != 0) - here
    at = torch.from_numpy(columns.astype(np.int64))
    y.index_add_(1, torch.from_numpy(rows), rounded[:, at].float() * torch.from_numpy(in_units))
