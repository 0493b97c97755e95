"""Products with codes against the dequantized matrix in float64, on every backend; and what is refused."""

from typing import Any

import numpy as np
import pytest

from spqfmt.kernels import native
from spqfmt.kernels.dequantize import dequantize_grouped, dequantize_uniform
from spqfmt.kernels.multiply import OutlierRows, multiply_grouped, multiply_uniform

SHAPES = [(1, 1), (3, 63), (5, 64), (7, 1000), (2, 1025), (3, 40_000)]


def packed(generator: np.random.Generator, n_codes: int, dtype: str) -> Any:
    return generator.integers(0, 256, -(-n_codes * int(dtype[1]) // 8), np.uint8)


def some_outliers(generator: np.random.Generator, rows: int, columns: int) -> OutlierRows:
    chosen = generator.random((rows, columns)) < 0.05
    begin = np.concatenate([[0], np.cumsum(chosen.sum(1))]).astype(np.int64)
    at = np.nonzero(chosen)[1].astype(np.uint32)
    return OutlierRows(begin, at, generator.normal(0, 9, at.size).astype(np.float32))


def replace(matrix: Any, outliers: OutlierRows) -> None:
    for row in range(len(matrix)):
        here = slice(outliers.row_begin[row], outliers.row_begin[row + 1])
        matrix[row, outliers.columns[here]] = outliers.values[here]


def check(x: Any, matrix: Any, y: Any) -> None:
    exact = x.astype(np.float64) @ matrix.astype(np.float64).T
    bound = np.abs(x).astype(np.float64) @ np.abs(matrix).astype(np.float64).T
    assert (np.abs(y - exact) <= 1e-5 * bound + 1e-30).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["i2", "i4", "i8", "u2", "u4", "u8"])
@pytest.mark.parametrize("rich", [False, True])
def test_uniform(shape: tuple[int, int], dtype: str, rich: bool) -> None:
    generator = np.random.default_rng(1)
    (rows, columns), tokens = shape, 6
    codes = packed(generator, rows * columns, dtype)
    row = generator.normal(0, 1, rows).astype(np.float32)
    column = generator.normal(0, 1, columns).astype(np.float32) if rich else None
    outliers = some_outliers(generator, rows, columns) if rich else None
    x = generator.normal(0, 1, (tokens, columns)).astype(np.float32)
    y = np.zeros((tokens, rows), np.float32)
    multiply_uniform(x, codes, dtype, row, column, y, outliers=outliers)
    matrix = np.empty(shape, np.float32)
    dequantize_uniform(codes, dtype, row, column, matrix, "f32")
    if outliers:
        replace(matrix, outliers)
    check(x, matrix, y)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["u2", "u4", "i8"])
@pytest.mark.parametrize("offset", ["zero_point", "minimum", None])
def test_grouped(shape: tuple[int, int], dtype: str, offset: str | None) -> None:
    generator = np.random.default_rng(2)
    (rows, columns), tokens, group_size = shape, 3, 24
    codes = packed(generator, rows * columns, dtype)
    groups = (rows, -(-columns // group_size))
    scale = generator.normal(0, 1, groups).astype(np.float32)
    more: dict[str, Any] = {offset: generator.normal(0, 1, groups).astype(np.float32)} if offset else {}
    outliers = some_outliers(generator, rows, columns)
    x = generator.normal(0, 1, (tokens, columns)).astype(np.float32)
    y = np.zeros((tokens, rows), np.float32)
    multiply_grouped(x, codes, dtype, group_size, scale, y, outliers=outliers, **more)
    matrix = np.empty(shape, np.float32)
    dequantize_grouped(codes, dtype, group_size, scale, matrix, "f32", **more)
    replace(matrix, outliers)
    check(x, matrix, y)


def test_a_part_of_the_rows_goes_to_its_outputs() -> None:
    generator = np.random.default_rng(3)
    codes = packed(generator, 9 * 70, "i8")
    row, x = np.ones(9, np.float32), generator.normal(0, 1, (2, 70)).astype(np.float32)
    whole, parts = np.zeros((2, 9), np.float32), np.full((2, 9), np.nan, np.float32)
    outliers = some_outliers(generator, 9, 70)
    multiply_uniform(x, codes, "i8", row, None, whole, outliers=outliers)
    for first, stop in ((0, 4), (4, 9)):
        part = outliers._replace(row_begin=outliers.row_begin[first : stop + 1])
        multiply_uniform(
            x, codes, "i8", row[first:stop], None, parts, outliers=part, first=first * 70, first_output=first
        )
    assert np.array_equal(whole, parts)


def test_every_backend_and_number_of_threads_gives_the_same_bits() -> None:
    generator = np.random.default_rng(4)
    rows, columns = 2100, 1030
    row, x = np.ones(rows, np.float32), generator.normal(0, 1, (2, columns)).astype(np.float32)
    scale = generator.normal(0, 1, (rows, 17)).astype(np.float32)
    codes = packed(generator, rows * columns, "i8")
    results = []
    before = native.active_kernels()
    try:
        for kernels in native.available_kernels():
            native.select_kernels(kernels)
            for n_threads in (1, 2):
                y = np.zeros((2, 2 * rows), np.float32)
                multiply_uniform(x, codes, "i8", row, None, y, n_threads=n_threads)
                multiply_grouped(x, codes, "u4", 61, scale, y, first_output=rows, n_threads=n_threads)
                results.append(y)
    finally:
        native.select_kernels(before)
    assert all(np.array_equal(results[0], other) for other in results[1:])


X, Y, ROW, CODES = (np.ones(s, np.float32) for s in ((2, 8), (2, 3), (3,), (6,)))
NONE = OutlierRows(np.zeros(4, np.int64), np.empty(0, np.uint32), np.empty(0, np.float32))


@pytest.mark.parametrize(
    "changes",
    [
        {"codes": np.zeros(23, np.uint8)},
        {"first": 1},
        {"x": X.astype(np.float64)},
        {"column": np.ones(7, np.float32)},
        {"y": np.ones((3, 3), np.float32)},
        {"y": np.ones((2, 3))},
        {"first_output": 1},
        {"outliers": NONE._replace(row_begin=np.zeros(3, np.int64))},
        {"outliers": NONE._replace(row_begin=np.array([0, 0, 0, 1]))},
        {"outliers": NONE._replace(row_begin=np.array([-1, 0, 0, 0]))},
        {
            "outliers": OutlierRows(
                np.array([0, 2, 1, 2]), np.array([1, 2], np.uint32), np.ones(2, np.float32)
            )
        },
        {
            "outliers": OutlierRows(
                np.array([0, 2, 2, 2]), np.array([2, 2], np.uint32), np.ones(2, np.float32)
            )
        },
        {"outliers": OutlierRows(np.array([0, 1, 1, 1]), np.array([8], np.uint32), np.ones(1, np.float32))},
        {"outliers": OutlierRows(np.array([0, 1, 1, 1]), np.array([1], np.uint32), np.ones(2, np.float32))},
    ],
)
def test_arrays_that_do_not_fit_are_refused(changes: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {
        "x": X, "codes": np.zeros(24, np.uint8), "code_dtype": "i8", "row": ROW, "column": None, "y": Y.copy(),
    }  # fmt: skip
    multiply_uniform(**arguments)
    with pytest.raises(ValueError, match=r"not|fewer|no place|differ|ascend|passes"):
        multiply_uniform(**arguments | changes)
