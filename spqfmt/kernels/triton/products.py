"""Launches of products, of rows by number: what they are launched with, and those that are prepared for one matrix."""

from collections.abc import Mapping
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from spqfmt.kernels.device.matrix import Matrix
from spqfmt.kernels.device.prepared import Product, RowsByNumber
from spqfmt.kernels.triton import multiply, outliers, weights
from spqfmt.kernels.triton.arguments import TO, code_arguments, scale_arguments, unit_arguments
from spqfmt.kernels.triton.launch import Open, prepare

# Without fusion a * b - c is two roundings, as the format says.
EXACT = {"enable_fp_fusion": False}
TILE_OF_ONE_TOKEN = {"TOKENS": 1, "ROWS": 4, "COLUMNS": 256}
TILE_OF_TOKENS = {"TOKENS": 16, "ROWS": 32, "COLUMNS": 64}
TILE_BY_ROWS = {"ROWS": 1, "COLUMNS": 1024}
OUTLIERS_AT_ONCE = {"AT_ONCE": 128}
STORABLE = {torch.bfloat16: torch.int16}
"""What floats.store takes a dtype for that it does not store as itself."""


def multiply_arguments(
    matrix: Matrix, rows: range, first: int, x_dtype: torch.dtype, out_dtype: torch.dtype, *, is_one: bool
) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Grid and arguments of `multiply`, without x, packed, y, bias and n_tokens."""
    tile = TILE_OF_ONE_TOKEN if is_one else TILE_OF_TOKENS
    arguments = _common(matrix, rows, first, x_dtype, is_one=is_one)
    arguments |= {"stop_row": rows.stop, "OUT": TO[out_dtype], "PRECISION": precision(_target())}
    arguments |= {**tile, **unit_arguments(matrix, first)}
    return (triton.cdiv(len(rows), tile["ROWS"]),), arguments


def precision(target: GPUTarget | None) -> str:
    """How products of bfloat16 and float16 are made, exact both ways: AMD's cards but for its CDNA 3 have no tf32."""
    return "ieee" if target is not None and target.backend == "hip" and target.arch[:5] != "gfx94" else "tf32"


def _target() -> GPUTarget | None:
    """The device that is compiled for; None where kernels are interpreted."""
    return None if triton.knobs.runtime.interpret else driver.active.get_current_target()


def correct_arguments(
    matrix: Matrix, rows: range, first: int, x_dtype: torch.dtype, out_dtype: torch.dtype, *, is_one: bool
) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Grid and arguments of `correct`, without x, packed, y, out, bias and n_tokens."""
    o = matrix.outliers
    assert o is not None
    arguments = _common(matrix, rows, first, x_dtype, is_one=is_one)
    arguments |= {"row_begin": o.row_begin, "columns": o.columns, "values": o.values, "OUT": TO[out_dtype]}
    return (len(rows),), arguments | OUTLIERS_AT_ONCE


def _common(matrix: Matrix, rows: range, first: int, x_dtype: torch.dtype, *, is_one: bool) -> dict[str, Any]:
    n_rows, n_columns = matrix.shape
    # one token is multiplied by float32 weights, as natively
    to = TO[torch.float32 if is_one else x_dtype]
    sizes = {"first": first, "first_row": rows.start, "n_columns": n_columns, "y_stride": n_rows}
    return {**sizes, **scale_arguments(matrix), **code_arguments(matrix), "TO": to}


def prepare_product(
    matrix: Matrix, rows: range, dtype: torch.dtype, bias: torch.Tensor | None, first: int, *, is_one: bool
) -> Product:
    """One launch, or two with outliers: the second takes the sums of the first."""
    storable = STORABLE.get(dtype, dtype)
    n_rows = matrix.shape[0]
    opened = {"x": Open(dtype), "packed": Open(torch.uint8)}
    n_tokens = 1 if is_one else Open(None)
    has_outliers = matrix.outliers is not None
    summed = torch.float32 if has_outliers else dtype
    grid, arguments = multiply_arguments(matrix, rows, first, x_dtype=dtype, out_dtype=summed, is_one=is_one)
    y = Open(torch.float32 if has_outliers else storable)
    added = None if has_outliers else bias
    multiplied = prepare(
        multiply.multiply, grid, {**opened, "y": y, "bias": added, "n_tokens": n_tokens, **arguments}, EXACT
    )
    if not has_outliers:
        if is_one:
            return lambda x, codes, y, _: multiplied(x, codes, y)
        return multiplied
    grid, arguments = correct_arguments(matrix, rows, first, x_dtype=dtype, out_dtype=dtype, is_one=is_one)
    given = {**opened, "y": y, "out": Open(storable), "bias": bias, "n_tokens": n_tokens}
    corrected = prepare(multiply.correct, grid, {**given, **arguments}, EXACT)

    def product(x: torch.Tensor, codes: torch.Tensor, out: torch.Tensor, n: int) -> None:
        given = () if is_one else (n,)
        sums = torch.empty(n, n_rows, dtype=torch.float32, device=x.device)
        multiplied(x, codes, sums, *given)
        corrected(x, codes, sums, out, *given)

    return product


def prepare_rows(matrix: Matrix, rows: range, dtype: torch.dtype, first: int) -> RowsByNumber:
    """One launch, or two with outliers."""
    storable = STORABLE.get(dtype, dtype)
    n_columns = matrix.shape[1]
    to = {"TO": TO[dtype]}
    common: Mapping[str, Any] = {
        "packed": Open(torch.uint8),
        "out": Open(storable),
        "permutation": matrix.permutation,
        "ids": Open(torch.int64),
        "first": first,
        "first_row": rows.start,
        "stop_row": rows.stop,
        "n_columns": n_columns,
        **scale_arguments(matrix),
        **code_arguments(matrix),
        **to,
        **TILE_BY_ROWS,
        **unit_arguments(matrix, first),
    }
    found = prepare(
        weights.dequantize_rows, (0, triton.cdiv(n_columns, TILE_BY_ROWS["COLUMNS"])), common, EXACT
    )
    o = matrix.outliers
    if o is None:
        return lambda codes, ids, out, n: found(codes, out, ids, width=n)
    replacing = {
        "out": Open(storable),
        "row_begin": o.row_begin,
        "columns": o.columns,
        "values": o.values,
        "places": None,
        "permutation": matrix.permutation,
        "ids": Open(torch.int64),
        "first_row": 0,
        "first_channel": rows.start,
        "stop_channel": rows.stop,
        "width": n_columns,
        "BY_COLUMNS": False,
        **to,
    }
    replaced = prepare(outliers.replace, (0,), replacing, EXACT)

    def look_up(codes: torch.Tensor, ids: torch.Tensor, out: torch.Tensor, n: int) -> None:
        found(codes, out, ids, width=n)
        replaced(out, ids, width=n)

    return look_up
