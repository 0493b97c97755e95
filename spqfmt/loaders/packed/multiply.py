"""y = x W^T from the parts of a packed matrix. All of it on the CPU, without gradients."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import torch

from spqfmt.codecs.base import Bytes
from spqfmt.kernels.multiply import OutlierRows, multiply_grouped, multiply_uniform
from spqfmt.loaders.packed.buffers import View
from spqfmt.loaders.packed.tiles import (
    dequantize_columns,
    dequantize_rows,
    outliers_of,
    unpacked,
)
from spqfmt.pipeline.residency.parts import Part, by_columns
from spqfmt.pipeline.residency.sides import Sides
from spqfmt.pipeline.residency.workspace import rows_at_once
from spqfmt.schemes.base import Float32

FEW_TOKENS = 2
"""Up to here the native product is faster than dequantizing to the activations' dtype and torch's product."""
_LARGEST_CODE = 127
# int32 sums of products of two int8 hold this many columns; one power of two below the bound.
_INT8_COLUMNS = 1 << 16

Lend = Callable[[Part], AbstractContextManager[View]]


def multiply(
    x: torch.Tensor,
    parts: tuple[Part, ...],
    sides: Sides,
    lend: Lend,
    workspace: Bytes,
    *,
    bias: torch.Tensor | None,
    int8_activations: bool,
) -> torch.Tensor:
    """Products of tokens `x` [n, columns] (float32, bfloat16 or float16) with the matrix: [n, rows], in x's dtype.

    With `int8_activations`, where the codes are the uniform scheme's, tokens are rounded to int8 with a scale each.
    `lend` gives the bytes of one part at a time; `workspace` is scratch memory that nobody else uses meanwhile.
    """
    record = sides.record
    n_rows, _ = record.matrix_shape
    if sides.permutation is not None:
        x = x[:, torch.from_numpy(sides.permutation)]
    if int8_activations and record.scheme == "uniform":
        y = _multiply_int8(x, parts, sides, lend)
    elif by_columns(record):
        y = _multiply_columns(x, parts, sides, lend)
    elif len(x) <= FEW_TOKENS and record.scheme != "dense":
        y = _multiply_few(x, parts, sides, lend)
    else:
        return _multiply_many(x, parts, sides, lend, workspace, bias)
    if sides.order is not None and not by_columns(record):
        y = torch.empty(len(x), n_rows).index_copy_(1, torch.from_numpy(sides.order), y)
    if bias is not None:
        y += bias
    return y.to(x.dtype)


def _multiply_few(x: torch.Tensor, parts: tuple[Part, ...], sides: Sides, lend: Lend) -> torch.Tensor:
    tokens = x.float().contiguous().numpy()
    y = np.empty((len(x), sides.record.matrix_shape[0]), np.float32)
    for part in parts:
        with lend(part) as view:
            _native(tokens, part, sides, view.bytes, y)
    return torch.from_numpy(y)


def _native(tokens: Float32, part: Part, sides: Sides, codes: Bytes, y: Float32) -> None:
    rows = slice(part.first, part.stop)
    outliers = sides.outliers
    if outliers is not None:
        outliers = OutlierRows(
            outliers.row_begin[part.first : part.stop + 1], outliers.columns, outliers.values
        )
        first, last = int(outliers.row_begin[0]), int(outliers.row_begin[-1])
        outliers = OutlierRows(
            outliers.row_begin - first, outliers.columns[first:last], outliers.values[first:last]
        )
    if sides.row is not None:
        multiply_uniform(
            tokens,
            codes,
            part.dtype,
            sides.row[rows],
            sides.column,
            y,
            outliers=outliers,
            first_output=part.first,
            n_threads=torch.get_num_threads(),
        )
        return
    scale = sides.group_values("scale", part.first, part.stop)
    assert scale is not None
    multiply_grouped(
        tokens,
        codes,
        part.dtype,
        sides.group_size,
        scale,
        y,
        zero_point=sides.group_values("zero_point", part.first, part.stop),
        minimum=sides.group_values("minimum", part.first, part.stop),
        outliers=outliers,
        first_output=part.first,
        n_threads=torch.get_num_threads(),
    )


def _multiply_many(
    x: torch.Tensor,
    parts: tuple[Part, ...],
    sides: Sides,
    lend: Lend,
    workspace: Bytes,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """torch's product with one tile of dequantized rows after the other."""
    n_rows, n_columns = sides.record.matrix_shape
    y = x.new_empty(len(x), n_rows)
    order = None if sides.order is None else torch.from_numpy(sides.order)
    bias = bias if bias is None else bias.to(x.dtype)
    for part in parts:
        with lend(part) as view:
            # A dense part of x's dtype is used where it is; any other goes through the workspace.
            step = rows_at_once(n_columns, x.dtype.itemsize, workspace.size)
            for first in range(0, part.stop - part.first, step):
                stop = min(first + step, part.stop - part.first)
                stored = slice(part.first + first, part.first + stop)
                outputs = slice(stored.start, stored.stop) if order is None else order[stored]
                tile = dequantize_rows(part, sides, view.bytes, first, stop, x.dtype, workspace)
                product = torch.nn.functional.linear(x, tile, None if bias is None else bias[outputs])
                del tile
                if stop - first == n_rows and order is None:
                    return product
                y[:, outputs] = product
    return y


def _multiply_columns(x: torch.Tensor, parts: tuple[Part, ...], sides: Sides, lend: Lend) -> torch.Tensor:
    """Sums over parts of columns, in float32."""
    tokens = x.float()
    y = torch.zeros(len(x), sides.record.matrix_shape[0])
    for part in parts:
        with lend(part) as view:
            columns, matrix = dequantize_columns(part, sides, view.bytes)
        y += tokens[:, torch.from_numpy(columns)] @ torch.from_numpy(matrix).t()
    return y


def _multiply_int8(x: torch.Tensor, parts: tuple[Part, ...], sides: Sides, lend: Lend) -> torch.Tensor:
    """Integer products: tokens scaled by columns, then rounded to -127..127 with scale max|x| / 127 each."""
    n_rows, n_columns = sides.record.matrix_shape
    assert sides.row is not None
    tokens = x.float() if sides.column is None else x * torch.from_numpy(sides.column)
    scale = tokens.abs().amax(1, keepdim=True) / _LARGEST_CODE
    scale = torch.where(scale > 0, scale, 1.0)
    rounded = torch.round(tokens / scale).clamp_(-_LARGEST_CODE, _LARGEST_CODE).to(torch.int8)
    columns_first = by_columns(sides.record)
    y = torch.zeros(len(x), n_rows)
    for part in parts:
        with lend(part) as view:
            codes = torch.from_numpy(unpacked(part, view.bytes))
            if columns_first:
                channels = slice(part.first, part.stop)
                chosen = rounded[
                    :, channels if sides.order is None else torch.from_numpy(sides.order)[channels]
                ]
                y += _int8_product(chosen, codes.view(-1, n_rows))
            else:
                y[:, part.first : part.stop] = _int8_product(rounded, codes.view(-1, n_columns).t())
            if sides.outliers is not None:
                _correct(y, rounded, part, sides, codes)
            del codes
    y *= torch.from_numpy(sides.row)
    return y.mul_(scale)


def _int8_product(x: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """int8 [n, columns] times int8 [columns, rows], exact, as float32; int32 sums of at most _INT8_COLUMNS columns."""
    x = x.contiguous()
    if x.shape[1] <= _INT8_COLUMNS:
        return torch._int_mm(x, codes).float()  # torch offers its int8 product under no other name
    total = torch.zeros(len(x), codes.shape[1], dtype=torch.int64)
    for first in range(0, x.shape[1], _INT8_COLUMNS):
        columns = slice(first, first + _INT8_COLUMNS)
        total += torch._int_mm(x[:, columns].contiguous(), codes[columns])
    return total.float()


def _correct(y: torch.Tensor, rounded: torch.Tensor, part: Part, sides: Sides, codes: torch.Tensor) -> None:
    """Put the outliers' share in place of what their codes gave; `y` is still in units of row and token scales."""
    assert sides.outliers is not None
    assert sides.row is not None
    n_rows, n_columns = sides.record.matrix_shape
    if by_columns(sides.record):
        rows, columns, values = outliers_of(sides.outliers, 0, n_rows)
        stored_at = np.full(n_columns, -1, np.int64)
        channels = np.arange(part.first, part.stop)
        stored_at[channels if sides.order is None else sides.order[channels]] = channels - part.first
        inside = stored_at[columns] >= 0
        rows, columns, values = rows[inside], columns[inside], values[inside]
        here = codes.view(-1, n_rows).numpy()[stored_at[columns], rows]
    else:
        rows, columns, values = outliers_of(sides.outliers, part.first, part.stop)
        here = codes.view(-1, n_columns).numpy()[rows, columns]
        rows = rows + part.first
    units = sides.row[rows] if sides.column is None else sides.row[rows] * sides.column[columns]
    # A weight without a scale is 0 whatever its code, and an outlier there has no unit to be counted in.
    in_units = np.divide(values, units, out=np.zeros_like(values), where=units != 0) - here
    at = torch.from_numpy(columns.astype(np.int64))
    y.index_add_(1, torch.from_numpy(rows), rounded[:, at].float() * torch.from_numpy(in_units))
