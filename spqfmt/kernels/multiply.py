"""Activations times weights that stay codes, natively: y = x W^T with W as in spqfmt.kernels.dequantize.

For some tokens at a time; with many, dequantizing rows and a matrix product of torch are faster. Weights are binary32
values, not rounded to a 16-bit type. A token's result does not depend on machine, number of threads or other tokens;
but for BF16 activations, for which some processors have products whose last bits are their own.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from spqfmt.kernels import _native
from spqfmt.kernels.dequantize import CODES, FLOATS, Float32, as_float32, offset_kind
from spqfmt.kernels.narrow import NarrowCodes, PieceCodes
from spqfmt.wire import SMALL_FLOATS

Numbers = npt.NDArray[np.int64]


class OutlierRows(NamedTuple):
    """The outliers of row i are numbers row_begin[i] to row_begin[i + 1] - 1 of `columns` (ascending) and `values`.

    `row_begin` is int64[n_rows + 1], `columns` uint32, `values` float32; `row_begin` need not begin at 0.
    """

    row_begin: npt.NDArray[np.int64]
    columns: npt.NDArray[np.uint32]
    values: Float32


class Floats(NamedTuple):
    """Memory of floats without gaps: its address, and the number of their type in FLOATS. Nobody checks it."""

    address: int
    type: int

    @classmethod
    def of(cls, values: npt.NDArray[Any], dtype: str) -> "Floats":
        """The address of a numpy array of `dtype`'s carrier. ValueError: it has gaps, or another carrier."""
        number, carrier = FLOATS[dtype]
        if values.dtype != carrier or not values.flags.c_contiguous:
            raise ValueError(
                f"{values.dtype} array, contiguous or not, is not contiguous {np.dtype(carrier)}"
            )
        return cls(values.ctypes.data, number)


NO_BIAS = Floats(0, 0)

# type number of group_numbers.hpp, carrier
_NUMBERS = {
    **FLOATS,
    **dict.fromkeys(("u2", "u4", "u8", "f8_e4m3", "f8_e8m0"), (3, np.uint8)),
    "i8": (4, np.int8),
}


class GroupNumbers(NamedTuple):
    """Scales, zero points or minimums of all groups as they are stored, [n_lines, n_groups], in their dtype's carrier.

    With `steps`, and perhaps `zeros` or `minimums`, one for each supergroup of `tile` (lines, groups): step * (value -
    zero), or step * value - minimum. With `table`, float32[256], values are numbers of those in it.
    """

    values: npt.NDArray[Any]
    dtype: str
    steps: npt.NDArray[Any] | None = None
    steps_dtype: str = "f16"
    zeros: npt.NDArray[Any] | None = None
    zeros_dtype: str = "f16"
    tile: tuple[int, int] = (1, 1)
    minimums: npt.NDArray[Any] | None = None
    minimums_dtype: str = "f16"
    table: Float32 | None = None

    def checked(self) -> tuple[Any, ...]:
        """Return the numbers for the native module, which checks the lengths. ValueError: another carrier, or gaps."""
        for array, dtype in (
            (self.values, self.dtype),
            (self.steps, self.steps_dtype),
            (self.zeros, self.zeros_dtype),
            (self.minimums, self.minimums_dtype),
        ):
            carrier = _NUMBERS[dtype][1]
            if array is not None and (array.dtype != carrier or not array.flags.c_contiguous):
                raise ValueError(f"numbers of groups are {array.dtype}, not contiguous {np.dtype(carrier)}")
        return (
            self.values,
            _NUMBERS[self.dtype][0],
            None if self.table is None else as_float32(self.table, (256,)),
            self.steps,
            _NUMBERS[self.steps_dtype][0],
            self.zeros,
            _NUMBERS[self.zeros_dtype][0],
            self.minimums,
            _NUMBERS[self.minimums_dtype][0],
            *self.tile,
        )


class Groups(NamedTuple):
    """What a grouped matrix's codes mean, by groups of `size` columns.

    scale * (code - zero_point), scale * code - minimum or scale * code. A line of groups is `rows` rows, cut short
    where each `stacked_rows` of them end; None: where the matrix does.
    """

    size: int
    scale: GroupNumbers
    zero_point: GroupNumbers | None = None
    minimum: GroupNumbers | None = None
    rows: int = 1
    stacked_rows: int | None = None


class CodeMatrix:
    """The parameters of a matrix of codes, held and checked once; the codes come with each call.

    Uniform: `row` float32[n_rows], step times row scale, and perhaps `column` float32[n_columns]. Grouped: `groups`,
    in the order of the stored rows; with `values`, float32[2^bits], codes are numbers of those. `outliers` replace
    weights. `permutation` int64[n_columns]: stored column -> column of x; `order` int64[n_rows]: stored row -> column
    of y. ValueError where they do not fit together.

    x is [n_tokens, n_columns], y [n_tokens, n_rows] of the same float type, bias [n_rows] or NO_BIAS; all are addresses
    for speed, and the caller's own memory. A call is for `n_rows` stored rows from `first_row` on, whose packed codes
    `codes` begins with. `n_threads` as in native.decode_chunks.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        code_dtype: str,
        *,
        row: Float32 | None = None,
        column: Float32 | None = None,
        outliers: OutlierRows | None = None,
        permutation: Numbers | None = None,
        order: Numbers | None = None,
        groups: Groups | None = None,
        values: Float32 | None = None,
    ) -> None:
        self.shape = shape
        kind, offset = (0, None) if groups is None else offset_kind(groups.zero_point, groups.minimum)
        bits, is_signed = CODES[code_dtype]
        if values is None and code_dtype in SMALL_FLOATS:
            raise ValueError(f"codes of {code_dtype} are not given values")
        self._native = _native.CodeMatrix(
            n_rows=shape[0],
            n_columns=shape[1],
            bits=bits,
            is_signed=is_signed,
            values=None if values is None else as_float32(values, (1 << bits,)),
            row=None if row is None else as_float32(row, shape[:1]),
            column=None if column is None else as_float32(column, shape[1:]),
            row_begin=None if outliers is None else outliers.row_begin,
            outlier_columns=None if outliers is None else outliers.columns,
            outlier_values=None if outliers is None else outliers.values,
            permutation=permutation,
            order=order,
            group_size=0 if groups is None else groups.size,
            group_rows=1 if groups is None else groups.rows,
            stacked_rows=shape[0] if groups is None or groups.stacked_rows is None else groups.stacked_rows,
            kind=kind,
            group_scale=None if groups is None else groups.scale.checked(),
            group_offset=None if offset is None else offset.checked(),
        )
        # Bound once: a product of one token takes a few microseconds.
        self.multiply = self._native.multiply
        """(codes, first_row, n_rows, *x, n_tokens, y_address, *bias, n_threads, rounds): products with some rows.

        With `rounds`, BF16 and F16 activations of up to 32 tokens are rounded to 8 bits, with a scale for each 4 or 8
        columns, where codes of 8 or 4 bits in groups stand for integers: the same bits on every machine, and faster.
        Where groups of 16 or 32 columns have scales of 8 bits times a step for 256 of them, 14 bits with a scale for
        each group, codes of 2 bits included."""
        self.multiply_to_floats = self._native.multiply_to_floats
        """(codes, *x, n_tokens, y_address, n_threads): products with all rows, float32 whatever the type of x."""
        self.round = self._native.round
        """(*x, n_tokens, codes_address, scales_address, n_threads): x times `column` to int8 [n_tokens, n_columns],
        the nearest of -127..127, with a float32 scale a token, max |x| / 127."""
        self.finish = self._native.finish
        """(sums_address, scales_address, first_row, n_rows, n_tokens, *y, *bias, n_threads): y from the int32
        [n_tokens, n_rows] products of such codes with the matrix's, without outliers."""


class CodeMatrices:
    """Matrices that take the same tokens, with all their codes: one call, and threads that meet once.

    ValueError: they differ in columns, or codes do not fit. Each product gives the bits that it gives alone.
    """

    def __init__(
        self, pairs: Sequence[tuple[CodeMatrix, npt.NDArray[np.uint8] | NarrowCodes | PieceCodes]]
    ) -> None:
        self._native = _native.CodeMatrices([(matrix._native, codes) for matrix, codes in pairs])
        self.multiply = self._native.multiply
        """(*x, n_tokens, outputs, n_threads, rounds): as of `CodeMatrix`; `outputs` has (y_address, *bias) of each
        matrix, one after the other."""
