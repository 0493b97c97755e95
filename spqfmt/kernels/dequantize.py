"""Codes -> weights, natively (FORMAT.md 5.3 and 5.5, without outliers, channel orders and permutations).

Every operation is one binary32 operation rounded once, in the order of the formulas; the result is bit for bit what
numpy gives for them in float32, then rounded to the output's type to nearest, ties to even.

`codes` are packed as in the file: of type "i2", "i4", "i8", "u2", "u4" or "u8", or a small float of 4 or 8 bits with
its values; the first in the lowest bits of a byte. The weights' code (row, column) is number `first` + row * n_columns
+ column of them, so that `first` chooses a run of whole rows. `out` is a C-contiguous matrix: float32 for "f32",
float16 for "f16", uint16 (the bits) for "bf16".
`n_threads` as in native.decode_chunks. Arrays that do not fit together raise ValueError.
"""

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from spqfmt.kernels import _native
from spqfmt.kernels.native import Buffer
from spqfmt.wire import DTYPES, SMALL_FLOATS

Matrix = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]

# code dtype -> bits, signed; small floats are numbers of their values
CODES = {f"{sign}{bits}": (bits, sign == "i") for sign in "iu" for bits in (2, 4, 8)} | {
    name: (DTYPES[name].bits, False) for name in SMALL_FLOATS if DTYPES[name].bits in {4, 8}
}
# type number of dequantize.hpp, carrier
FLOATS = {"f32": (0, np.float32), "bf16": (1, np.uint16), "f16": (2, np.float16)}
_NONE, _ZERO_POINT, _MINIMUM = range(3)

_Values = TypeVar("_Values")


def dequantize_uniform(
    codes: Buffer,
    code_dtype: str,
    row: Float32,
    column: Float32 | None,
    out: Matrix,
    out_dtype: str,
    *,
    first: int = 0,
    n_threads: int = 1,
) -> None:
    """weight[i, j] = (code * row[i]) * column[j]; without `column` the last factor is left out.

    `row` is float32[n_rows], the step times the row's scale; `column` float32[n_columns].
    """
    bits, signed = CODES[code_dtype]
    n_rows, n_columns = out.shape
    _native.dequantize_uniform(
        codes,
        first,
        bits,
        is_signed=signed,
        n_rows=n_rows,
        n_columns=n_columns,
        row=as_float32(row, (n_rows,)),
        column=None if column is None else as_float32(column, (n_columns,)),
        type=_output_type(out, out_dtype),
        dst=out,
        n_threads=n_threads,
    )


def dequantize_grouped(
    codes: Buffer,
    code_dtype: str,
    group_size: int,
    scale: Float32,
    out: Matrix,
    out_dtype: str,
    *,
    zero_point: Float32 | None = None,
    minimum: Float32 | None = None,
    values: Float32 | None = None,
    first: int = 0,
    n_threads: int = 1,
) -> None:
    """weight[i, k] = scale[i, g] * (code - zero_point[i, g]), or scale * code - minimum, or scale * code.

    With `values`, float32[2^bits], unsigned codes are numbers of them, and the value stands in a code's place.
    g = k // group_size; `scale` and at most one of `zero_point` and `minimum` are float32[n_rows, n_groups].
    """
    bits, signed = CODES[code_dtype]
    kind, offset = offset_kind(zero_point, minimum)
    if group_size < 1:
        raise ValueError("group_size is not positive")
    n_rows, n_columns = out.shape
    groups = (n_rows, -(-n_columns // group_size))
    _native.dequantize_grouped(
        codes,
        first,
        bits,
        is_signed=signed,
        n_rows=n_rows,
        n_columns=n_columns,
        values=None if values is None else as_float32(values, (1 << bits,)),
        group_size=group_size,
        scale=as_float32(scale, groups),
        kind=kind,
        offset=None if offset is None else as_float32(offset, groups),
        type=_output_type(out, out_dtype),
        dst=out,
        n_threads=n_threads,
    )


def offset_kind(zero_point: _Values | None, minimum: _Values | None) -> tuple[int, _Values | None]:
    """GroupOffset's number and the values that it means. ValueError: both are given."""
    if zero_point is not None and minimum is not None:
        raise ValueError("zero points and minimums exclude each other")
    if zero_point is not None:
        return _ZERO_POINT, zero_point
    return (_NONE, None) if minimum is None else (_MINIMUM, minimum)


def as_float32(values: Float32, shape: tuple[int, ...]) -> Float32:
    """Return `values` as they are, or a contiguous copy. ValueError: they have another dtype or shape."""
    if values.dtype != np.float32 or values.shape != shape:
        raise ValueError(f"parameters are {values.dtype}{list(values.shape)}, not float32{list(shape)}")
    return np.ascontiguousarray(values)


def _output_type(out: Matrix, dtype: str) -> int:
    number, carrier = FLOATS[dtype]
    if out.dtype != carrier:
        raise ValueError(f"{dtype} is carried by {np.dtype(carrier)}, not {out.dtype}")
    return number
