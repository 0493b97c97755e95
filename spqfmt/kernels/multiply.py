"""Activations times weights that stay codes, natively: y = x W^T with W as in spqfmt.kernels.dequantize.

For a few tokens at a time; with many, dequantizing rows and a matrix product of torch are faster. The weights are
binary32 values, not rounded to a 16-bit type. A result does not depend on machine or number of threads.

`x` is float32 [n_tokens, n_columns]. Rows of W go to the columns of `y`, float32 [n_tokens, any], from `first_output`
on. `outliers` replace weights. Arrays that do not fit together raise ValueError.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from spqfmt.kernels import _native
from spqfmt.kernels.dequantize import CODES, Float32, as_float32, offset_kind
from spqfmt.kernels.native import Buffer


class OutlierRows(NamedTuple):
    """The outliers of row i are numbers row_begin[i] to row_begin[i + 1] - 1 of `columns` (ascending) and `values`.

    `row_begin` is int64[n_rows + 1], `columns` uint32, `values` float32; `row_begin` need not begin at 0.
    """

    row_begin: npt.NDArray[np.int64]
    columns: npt.NDArray[np.uint32]
    values: Float32


def multiply_uniform(
    x: Float32,
    codes: Buffer,
    code_dtype: str,
    row: Float32,
    column: Float32 | None,
    y: Float32,
    *,
    outliers: OutlierRows | None = None,
    first: int = 0,
    first_output: int = 0,
    n_threads: int = 0,
) -> None:
    """Rows of code * row[i] * column[j]: `row` float32[n_rows], step times row scale; `column` float32[n_columns]."""
    bits, signed = CODES[code_dtype]
    n_tokens, n_columns = x.shape
    _native.multiply_uniform(
        codes,
        first,
        bits,
        signed,
        row.size,
        n_columns,
        as_float32(row, (row.size,)),
        None if column is None else as_float32(column, (n_columns,)),
        None if outliers is None else outliers.row_begin,
        None if outliers is None else outliers.columns,
        None if outliers is None else outliers.values,
        as_float32(x, x.shape),
        n_tokens,
        _output(y, n_tokens),
        first_output,
        y.shape[1],
        n_threads,
    )


def multiply_grouped(
    x: Float32,
    codes: Buffer,
    code_dtype: str,
    group_size: int,
    scale: Float32,
    y: Float32,
    *,
    zero_point: Float32 | None = None,
    minimum: Float32 | None = None,
    outliers: OutlierRows | None = None,
    first: int = 0,
    first_output: int = 0,
    n_threads: int = 0,
) -> None:
    """Rows of scale * (code - zero_point), scale * code - minimum or scale * code; each float32[n_rows, n_groups]."""
    bits, signed = CODES[code_dtype]
    kind, offset = offset_kind(zero_point, minimum)
    if group_size < 1:
        raise ValueError("group_size is not positive")
    n_tokens, n_columns = x.shape
    groups = (scale.shape[0], -(-n_columns // group_size))
    _native.multiply_grouped(
        codes,
        first,
        bits,
        signed,
        scale.shape[0],
        n_columns,
        group_size,
        as_float32(scale, groups),
        kind,
        None if offset is None else as_float32(offset, groups),
        None if outliers is None else outliers.row_begin,
        None if outliers is None else outliers.columns,
        None if outliers is None else outliers.values,
        as_float32(x, x.shape),
        n_tokens,
        _output(y, n_tokens),
        first_output,
        y.shape[1],
        n_threads,
    )


def _output(y: Float32, n_tokens: int) -> Float32:
    if y.dtype != np.float32 or y.ndim != 2 or y.shape[0] != n_tokens or not y.flags.c_contiguous:
        raise ValueError(f"y is {y.dtype}{list(y.shape)}, not a contiguous float32[{n_tokens}, any]")
    return y
