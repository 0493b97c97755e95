"""The two launches of a product straight from rans blocks, with all that stays the same bound once."""

import ctypes

import torch

from spqfmt.kernels.cuda.driver import Driver, Launch
from spqfmt.kernels.device.fusing import WARPS, FusedPlan, Kind, kind_of
from spqfmt.kernels.device.matrix import CODE_DTYPES, DeviceFloats, Matrix, UniformScales
from spqfmt.kernels.device.prepared import Product

TOKENS = (1, 4, 8)
"""Tokens that there are kernels for; a product takes the least that is enough."""
ROWS_AT_ONCE = 4
_LANES = 32
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.uint8: 3}
_SYMBOL = 2048.0
"""What a symbol's bits are more in a float (fused.cu, put_codes), and those of the second code in it."""
_SECOND = 128.0
_WHOLE_ROW = 31


class _Multiply(ctypes.Structure):
    """The structure `Multiply` of fused.cu."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("stored", "cumulative", "blocks", "x", "columns")),
        *((name, ctypes.c_void_p) for name in ("scale", "offset", "sums", "error")),
        *((name, ctypes.c_uint32) for name in ("n_columns", "n_tokens", "x_is_half", "turned")),
        ("bias", ctypes.c_float),
        ("high_bias", ctypes.c_float),
        *((name, ctypes.c_uint32) for name in ("group_log2", "n_groups", "n_rows", "scale_is", "offset_is")),
        ("offset_is_zero_point", ctypes.c_uint32),
    )


class _Finish(ctypes.Structure):
    """The structure `Finish` of fused.cu."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("sums", "first_slots", "row_scale", "outlier_begin")),
        *((name, ctypes.c_void_p) for name in ("outlier_columns", "changes", "x", "bias", "y")),
        *(
            (name, ctypes.c_uint32)
            for name in ("first_row", "n_rows", "matrix_rows", "n_columns", "n_tokens")
        ),
        *((name, ctypes.c_uint32) for name in ("at_once", "x_is_half")),
    )


def prepare_fused(
    driver: Driver,
    stored: torch.Tensor,
    plan: FusedPlan,
    matrix: Matrix | DeviceFloats,
    dtype: torch.dtype,
    *,
    bias: torch.Tensor | None,
    sums: torch.Tensor,
    error: torch.Tensor | None,
    is_one: bool,
) -> Product:
    """What DeviceKernels.prepare_fused gives, for a matrix that has a kind."""
    kind = kind_of(matrix)
    assert kind is not None
    common = _multiply(stored, plan, matrix, dtype, sums=sums, error=error)
    last = _finish(plan, matrix, dtype, bias=bias, sums=sums)
    by_tokens: list[tuple[_Multiply, _Finish, Launch, Launch]] = []
    for at_once in TOKENS[:1] if is_one else TOKENS:
        multiply, finish = _Multiply.from_buffer_copy(common), _Finish.from_buffer_copy(last)
        finish.at_once = at_once
        name = f"{kind.value}_{at_once}"
        first = driver.prepare(name, plan.n_programs, _LANES * WARPS, multiply)
        rows = -(-len(plan.rows) // ROWS_AT_ONCE)
        second = driver.prepare("finish", rows, _LANES * ROWS_AT_ONCE, finish)
        # as many times as there are numbers of tokens that take it
        by_tokens += [(multiply, finish, first, second)] * (at_once - len(by_tokens))

    def product(x: torch.Tensor, _codes: torch.Tensor, y: torch.Tensor, n: int) -> None:
        multiply, finish, first, second = by_tokens[n - 1]
        multiply.x = finish.x = x.data_ptr()
        finish.y = y.data_ptr()
        multiply.n_tokens = finish.n_tokens = n
        first()
        second()

    return product


def _multiply(
    stored: torch.Tensor,
    plan: FusedPlan,
    matrix: Matrix | DeviceFloats,
    dtype: torch.dtype,
    *,
    sums: torch.Tensor,
    error: torch.Tensor | None,
) -> _Multiply:
    records = plan.records.data_ptr()
    found = _Multiply(
        stored=stored.data_ptr(),
        cumulative=records,
        blocks=records + 4 * plan.blocks_at,
        sums=sums.data_ptr(),
        error=_address(error),
        n_columns=matrix.shape[1],
        x_is_half=dtype == torch.float16,
        n_rows=matrix.shape[0],
    )
    if isinstance(matrix, DeviceFloats):
        return found
    bits, signed = CODE_DTYPES[matrix.code_dtype]
    least = -(1 << (bits - 1)) if signed else 0
    # a code's sign bit turned around makes of it a number from the least one up
    found.turned = (0x88 if plan.per_symbol > 1 else 0x80) if signed else 0
    found.bias, found.high_bias = _SYMBOL - least, _SECOND - least
    scales = matrix.scales
    if isinstance(scales, UniformScales):
        found.columns = _address(scales.column)
        return found
    offset = scales.zero_point or scales.minimum
    found.scale, found.scale_is = scales.scale.values.data_ptr(), _DTYPES[scales.scale.values.dtype]
    found.n_groups = scales.scale.values.shape[1]
    found.group_log2 = (
        _WHOLE_ROW if scales.group_size >= matrix.shape[1] else scales.group_size.bit_length() - 1
    )
    if offset is not None:
        found.offset, found.offset_is = offset.values.data_ptr(), _DTYPES[offset.values.dtype]
        found.offset_is_zero_point = scales.zero_point is not None
    return found


def _finish(
    plan: FusedPlan,
    matrix: Matrix | DeviceFloats,
    dtype: torch.dtype,
    *,
    bias: torch.Tensor | None,
    sums: torch.Tensor,
) -> _Finish:
    found = _Finish(
        sums=sums.data_ptr(),
        first_slots=plan.records.data_ptr() + 4 * plan.first_slots_at,
        bias=_address(bias),
        first_row=plan.rows.start,
        n_rows=len(plan.rows),
        matrix_rows=matrix.shape[0],
        n_columns=matrix.shape[1],
        x_is_half=dtype == torch.float16,
    )
    if isinstance(matrix, DeviceFloats):
        return found
    if isinstance(matrix.scales, UniformScales):
        found.row_scale = matrix.scales.row.data_ptr()
    if matrix.outliers is not None:
        found.outlier_begin, found.outlier_columns = (
            matrix.outliers.row_begin.data_ptr(),
            matrix.outliers.columns.data_ptr(),
        )
        found.changes = _address(matrix.outliers.changes)
    return found


def _address(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


NAMES = (*(f"{kind.value}_{tokens}" for kind in Kind for tokens in TOKENS), "finish")
"""What the kernels of fused.cu are called."""
