"""Products with codes against the dequantized matrix in float64, on every backend; and what is refused."""

from typing import Any

import numpy as np
import pytest
import torch

from spqfmt.kernels import native
from spqfmt.kernels.dequantize import FLOATS, dequantize_grouped, dequantize_uniform
from spqfmt.kernels.multiply import (
    NO_BIAS,
    CodeMatrices,
    CodeMatrix,
    Floats,
    GroupNumbers,
    Groups,
    OutlierRows,
)
from spqfmt.schemes.floats import small_float_values, widen
from spqfmt.wire import DTYPES

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


def product(matrix: CodeMatrix, codes: Any, x: Any, n_threads: int = 2) -> Any:
    y = np.full((len(x), matrix.shape[0]), np.nan, np.float32)
    there = Floats.of(y, "f32")
    matrix.multiply(
        codes, 0, matrix.shape[0], *Floats.of(x, "f32"), len(x), there.address, *NO_BIAS, n_threads
    )
    return y


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["i2", "i4", "i8", "u2", "u4", "u8"])
@pytest.mark.parametrize("form", ["plain", "columns", "outliers"])
def test_uniform(shape: tuple[int, int], dtype: str, form: str) -> None:
    generator = np.random.default_rng(1)
    (rows, columns), tokens = shape, 19
    codes = packed(generator, rows * columns, dtype)
    row = generator.normal(0, 1, rows).astype(np.float32)
    column = None if form == "plain" else generator.normal(0, 1, columns).astype(np.float32)
    outliers = some_outliers(generator, rows, columns) if form == "outliers" else None
    x = generator.normal(0, 1, (tokens, columns)).astype(np.float32)
    y = product(CodeMatrix(shape, dtype, row=row, column=column, outliers=outliers), codes, x)
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
    given = Groups(group_size, GroupNumbers(scale, "f32"))
    if offset:
        given = given._replace(**{offset: GroupNumbers(more[offset], "f32")})
    y = product(CodeMatrix(shape, dtype, outliers=outliers, groups=given), codes, x)
    matrix = np.empty(shape, np.float32)
    dequantize_grouped(codes, dtype, group_size, scale, matrix, "f32", **more)
    replace(matrix, outliers)
    check(x, matrix, y)


def some_numbers(
    generator: np.random.Generator, shape: tuple[int, int], dtype: str, tile: tuple[int, int] | None
) -> tuple[GroupNumbers, Any]:
    """Numbers of groups, and what they are, float32 of that shape."""
    if dtype == "f16":
        values = generator.normal(0, 1, shape).astype(np.float16)
        values.reshape(-1)[::5] *= np.float16(2**-15)  # subnormal halves among them
    elif dtype == "bf16":
        values = (generator.normal(0, 1, shape).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    else:
        values = generator.integers(0, 16, shape).astype(np.uint8)
    wide = widen(values, dtype)
    if tile is None:
        return GroupNumbers(values, dtype), wide
    tiles = tuple(-(-n // size) for n, size in zip(shape, tile, strict=True))
    steps, zeros = (generator.normal(0, 1, tiles).astype(np.float16) for _ in range(2))
    spread = [np.repeat(np.repeat(a, tile[0], 0), tile[1], 1)[: shape[0], : shape[1]] for a in (steps, zeros)]
    step, zero = (a.astype(np.float32) for a in spread)
    return GroupNumbers(values, dtype, steps.reshape(-1), "f16", zeros.reshape(-1), "f16", tile), step * (
        wide - zero
    )


@pytest.mark.parametrize("numbers", ["f16", "bf16", "u4", "u4 tiles", "u4 tall tiles"])
@pytest.mark.parametrize("float_type", ["f32", "bf16"])
def test_numbers_of_groups_as_they_are_stored(numbers: str, float_type: str) -> None:
    generator = np.random.default_rng(7)
    rows, columns, tokens, size = 23, 2112, 5, 16
    groups, tile = (rows, columns // size), None
    if numbers.endswith("tiles"):
        tile = (16, 1) if "tall" in numbers else (4, 16)
    scale, scale_values = some_numbers(generator, groups, numbers.split(maxsplit=1)[0], tile)
    zero, zero_values = some_numbers(generator, groups, numbers.split(maxsplit=1)[0], tile)
    codes = packed(generator, rows * columns, "u4")
    matrix = CodeMatrix((rows, columns), "u4", groups=Groups(size, scale, zero_point=zero))
    weights = np.empty((rows, columns), np.float32)
    dequantize_grouped(codes, "u4", size, scale_values, weights, "f32", zero_point=zero_values)
    x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(0))
    used = x.bfloat16() if float_type == "bf16" else x
    y = torch.full((tokens, rows), torch.nan, dtype=used.dtype)
    number = FLOATS[float_type][0]
    # In runs of rows that begin inside a tile.
    for first, stop in ((0, 6), (6, 7), (7, rows)):
        part = codes[first * columns // 2 : stop * columns // 2]
        matrix.multiply(part, first, stop - first, used.data_ptr(), number, tokens, y.data_ptr(), *NO_BIAS, 1)
    exact = used.double() @ torch.from_numpy(weights).double().t()
    # Codes and offsets are summed apart where activations are BF16.
    parts = np.abs(weights) + 2 * np.abs(np.repeat(scale_values * zero_values, size, 1))
    bound = used.abs().double() @ torch.from_numpy(parts).double().t()
    allowed = 2**-8 * exact.abs() + 1e-6 * bound if float_type == "bf16" else 1e-5 * bound
    assert ((y.double() - exact).abs() <= allowed).all()


@pytest.mark.parametrize("dtype", ["u2", "i2", "u4", "i4"])
@pytest.mark.parametrize("columns", [4, 60, 64, 200, 1024, 2112])
@pytest.mark.parametrize("size", [4, 8, 16, 32, 64, 192, 4096])
@pytest.mark.parametrize("offset", ["zero_point", "minimum", None])
def test_groups_times_bf16(dtype: str, columns: int, size: int, offset: str | None) -> None:
    generator = np.random.default_rng(8)
    rows, tokens = 6, 22
    codes = packed(generator, rows * columns, dtype)
    groups = (rows, -(-columns // size))
    scale, other = (generator.normal(0, 1, groups).astype(np.float32) for _ in range(2))
    outliers = some_outliers(generator, rows, columns) if columns % 3 else None
    permutation = generator.permutation(columns) if columns > 100 else None
    given = Groups(size, GroupNumbers(scale, "f32"))
    if offset:
        given = given._replace(**{offset: GroupNumbers(other, "f32")})
    matrix = CodeMatrix((rows, columns), dtype, outliers=outliers, permutation=permutation, groups=given)
    weights = np.empty((rows, columns), np.float32)
    more = {offset: other} if offset else {}
    dequantize_grouped(codes, dtype, size, scale, weights, "f32", **more)
    parts = np.abs(weights)
    if offset:
        parts += 2 * np.abs(np.repeat(other * (scale if offset == "zero_point" else 1), size, 1)[:, :columns])
    if outliers:
        parts += 20
        replace(weights, outliers)
    x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(1)).bfloat16()
    used = x if permutation is None else x[:, permutation]
    exact = used.double() @ torch.from_numpy(weights).double().t()
    bound = used.abs().double() @ torch.from_numpy(parts).double().t()
    results = []
    for n in (1, 5, tokens):
        y = torch.full((n, rows), torch.nan, dtype=torch.bfloat16)
        matrix.multiply(codes, 0, rows, x.data_ptr(), FLOATS["bf16"][0], n, y.data_ptr(), *NO_BIAS, 2)
        assert ((y.double() - exact[:n]).abs() <= 2**-8 * exact[:n].abs() + 1e-6 * bound[:n]).all()
        results.append(y)
    assert torch.equal(results[0][0], results[2][0])
    assert torch.equal(results[1], results[2][:5])


# Integers; values that BF16 holds, and that it does not; and such that a product of BF16 cannot take.
VALUES = {
    "integers": lambda _, __: None,
    "bf16": lambda generator, n: generator.integers(-128, 129, n).astype(np.float32) / 64,
    "f32": lambda generator, n: generator.normal(0, 1, n).astype(np.float32),
    "tiny": lambda generator, n: np.ldexp(generator.normal(0, 1, n), -125).astype(np.float32),
}


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("u8", "integers"), ("i8", "integers"),
        *((dtype, values) for dtype in ("u2", "u4", "u8") for values in ("bf16", "f32", "tiny")),
        *((dtype, "its own") for dtype in ("f4_e2m1", "f8_e4m3", "f8_e5m2")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("columns", [60, 1024, 2112])
@pytest.mark.parametrize("size", [4, 24, 128, 4096])
def test_values_of_codes_times_floats(dtype: str, columns: int, size: int, values: str) -> None:
    generator = np.random.default_rng(9)
    rows, tokens, group_rows = 11, 6, 4
    bits = DTYPES[dtype].bits
    codes = packed(generator, rows * columns, f"u{bits}")
    if values == "its own":
        levels = np.nan_to_num(small_float_values(dtype), nan=1, posinf=2, neginf=-2)
    else:
        levels = VALUES[values](generator, 1 << bits)
    groups, factor = (rows, -(-columns // size)), np.float32(2**120 if values == "tiny" else 1)
    lines = np.arange(rows) // group_rows
    scale = generator.uniform(0.5, 1, (lines[-1] + 1, groups[1])).astype(np.float32) * factor
    given = Groups(size, GroupNumbers(scale, "f32"), rows=group_rows)
    outliers = some_outliers(generator, rows, columns) if columns % 3 else None
    matrix = CodeMatrix((rows, columns), dtype, outliers=outliers, groups=given, values=levels)
    weights = np.empty((rows, columns), np.float32)
    dequantize_grouped(codes, dtype, size, scale[lines], weights, "f32", values=levels)
    parts = np.abs(weights)
    if outliers:
        parts += 20
        replace(weights, outliers)
    for dtype_of_x, eps in ((torch.float32, 2e-5), (torch.bfloat16, 2**-8)):
        x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(1)).to(dtype_of_x)
        exact = x.double() @ torch.from_numpy(weights).double().t()
        bound = x.abs().double() @ torch.from_numpy(parts).double().t()
        y = torch.full((tokens, rows), torch.nan, dtype=dtype_of_x)
        number = FLOATS["f32" if dtype_of_x == torch.float32 else "bf16"][0]
        # In runs of rows that begin inside a line of groups.
        for first, stop in ((0, 6), (6, 7), (7, rows)):
            part = codes[first * columns * bits // 8 : stop * columns * bits // 8]
            there = (x.data_ptr(), number, tokens, y.data_ptr())
            matrix.multiply(part, first, stop - first, *there, *NO_BIAS, 2)
        # Two BF16 numbers hold 16 bits of a value.
        assert ((y.double() - exact).abs() <= eps * exact.abs() + 2e-5 * bound).all()


IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)


def rounded_to_lanes(x: Any, columns: int, most: int = 127) -> Any:
    """Activations as products of integers take them: 1/`most` of the largest of each so many columns."""
    wide = np.pad(x, ((0, 0), (0, -x.shape[1] % columns))).reshape(len(x), -1, columns)
    largest = np.abs(wide).max(-1, keepdims=True)
    factor = np.divide(np.float32(most), largest, out=np.zeros_like(largest), where=largest > 0)
    units = np.rint(wide * factor).astype(np.float64) * (largest / np.float32(most))
    return units.reshape(len(x), -1)[:, : x.shape[1]]


@pytest.mark.parametrize("dtype", ["u2", "u4", "i4", "u8", "i8", "levels", "f4_e2m1"])
@pytest.mark.parametrize("columns", [60, 576, 1024, 2112])
@pytest.mark.parametrize("size", [8, 16, 64, 128, 4096])
@pytest.mark.parametrize("offset", ["zero_point", "minimum", None])
def test_rounded_activations(dtype: str, columns: int, size: int, offset: str | None) -> None:
    generator = np.random.default_rng(10)
    rows, tokens = 9, 19
    values = {"levels": IQ4 / 64, "f4_e2m1": small_float_values("f4_e2m1")}.get(dtype)
    code_dtype = "u4" if dtype == "levels" else dtype
    bits = DTYPES[code_dtype].bits
    codes = packed(generator, rows * columns, f"u{bits}")
    groups = (rows, -(-columns // size))
    scale = generator.uniform(0.5, 1, groups).astype(np.float16)
    other = generator.uniform(0, 1 << bits, groups).astype(np.float32)
    given = Groups(size, GroupNumbers(scale, "f16"))
    if offset:
        given = given._replace(**{offset: GroupNumbers(other, "f32")})
    outliers = some_outliers(generator, rows, columns) if columns == 60 else None
    permutation = generator.permutation(columns) if columns == 576 else None
    matrix = CodeMatrix(
        (rows, columns), code_dtype, outliers=outliers, permutation=permutation, groups=given, values=values
    )
    weights = np.empty((rows, columns), np.float32)
    more = {offset: other} if offset else {}
    dequantize_grouped(
        codes, code_dtype, size, scale.astype(np.float32), weights, "f32", values=values, **more
    )
    x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(2)).bfloat16()
    x[0, 8:24] = 0
    taken = (x if permutation is None else x[:, permutation]).float().numpy()
    lane = 32 // bits
    is_rounded = (
        bits > 2
        and size % lane == 0
        and (16 * lane % size == 0 or size % (16 * lane) == 0 or size >= columns)
    )
    used = rounded_to_lanes(taken, lane) if is_rounded else taken.astype(np.float64)
    exact = used @ weights.astype(np.float64).T
    parts = np.abs(weights)
    if offset:
        factor = scale.astype(np.float32) if offset == "zero_point" else 1
        parts += 2 * np.abs(np.repeat(other * factor, size, 1)[:, :columns])
    if outliers:
        # Outliers are multiplied with activations as they are; the codes there with rounded ones, and taken off.
        before = weights.copy()
        replace(weights, outliers)
        exact += taken @ (weights - before).astype(np.float64).T
        parts += 20
    bound = np.abs(used) @ parts.astype(np.float64).T
    results = []
    kernels_before = native.active_kernels()
    try:
        for kernels in native.available_kernels():
            native.select_kernels(kernels)
            for n in (1, tokens):
                y = torch.full((n, rows), torch.nan, dtype=torch.bfloat16)
                there = (x.data_ptr(), FLOATS["bf16"][0], n, y.data_ptr())
                matrix.multiply(codes, 0, rows, *there, *NO_BIAS, 2, True)
                error = np.abs(y.double().numpy() - exact[:n])
                assert (error <= 2**-8 * np.abs(exact[:n]) + 1e-5 * bound[:n] + 1e-30).all(), kernels
                results.append(y)
    finally:
        native.select_kernels(kernels_before)
    if is_rounded:
        # The same bits from every instruction set, and whatever other tokens there are.
        assert all(torch.equal(y[0], results[0][0]) for y in results)
        assert all(torch.equal(y, results[1]) for y in results[1::2])


# Of ggml's blocks, of rows (NF4's), of SpQR, and one of no power of two.
@pytest.mark.parametrize("tile", [(1, 8), (1, 16), (1, 64), (16, 1), (4, 6)])
@pytest.mark.parametrize("third", ["zeros", "minimums", None])
@pytest.mark.parametrize("offset", ["zero_point", "minimum"])
@pytest.mark.parametrize(("columns", "size"), [(1312, 16), (2304, 128), (4352, 16)])
def test_numbers_of_a_second_level_give_the_same_bits(
    tile: tuple[int, int], third: str | None, offset: str, columns: int, size: int
) -> None:
    """Groups are whole registers of numbers and a part of one, of a tile of columns and of more than one."""
    generator = np.random.default_rng(11)
    rows = 19
    groups = (rows, columns // size)
    tiles = tuple(-(-n // size) for n, size in zip(groups, tile, strict=True))
    numbers, exact = [], []
    for codes_dtype, least, most in (("i8", -32, 32), ("u8", 0, 64)):
        values = generator.integers(least, most, groups).astype(np.int8 if codes_dtype == "i8" else np.uint8)
        steps, more = (generator.normal(0, 1, tiles).astype(np.float16) for _ in range(2))
        step, other = (
            np.repeat(np.repeat(a, tile[0], 0), tile[1], 1)[:rows, : groups[1]].astype(np.float32)
            for a in (steps, more)
        )
        given = GroupNumbers(values, codes_dtype, steps.reshape(-1), "f16", tile=tile)
        wide = values.astype(np.float32)
        if third:
            given = given._replace(**{third: more.reshape(-1), f"{third}_dtype": "f16"})
        numbers.append(given)
        exact.append(step * (wide - other) if third == "zeros" else step * wide - (other if third else 0))
    codes = packed(generator, rows * columns, "u4")
    matrix = CodeMatrix((rows, columns), "u4", groups=Groups(size, numbers[0], **{offset: numbers[1]}))
    weights = np.empty((rows, columns), np.float32)
    dequantize_grouped(codes, "u4", size, exact[0], weights, "f32", **{offset: exact[1]})
    x = torch.randn(3, columns, generator=torch.Generator().manual_seed(3)).bfloat16()
    # Groups of whole supergroups have lanes of their own (test_multiply_lanes.py).
    has_lanes = offset == "minimum" and third is None and columns % 256 == 0 and tile == (1, 256 // size)
    used = rounded_to_lanes(x.float().numpy(), *((16, 8192) if has_lanes else (8,)))
    due = used @ weights.astype(np.float64).T
    factor = exact[0] if offset == "zero_point" else 1
    bound = np.abs(used) @ (np.abs(weights) + 2 * np.abs(np.repeat(exact[1] * factor, size, 1))).T.astype(
        np.float64
    )
    results, kernels_before = [], native.active_kernels()
    try:
        for kernels in native.available_kernels():
            native.select_kernels(kernels)
            y = torch.full((3, rows), torch.nan, dtype=torch.bfloat16)
            there = (x.data_ptr(), FLOATS["bf16"][0], 3, y.data_ptr())
            # In runs of rows that begin inside a tile.
            for first, stop in ((0, 6), (6, 7), (7, rows)):
                part = codes[first * columns // 2 : stop * columns // 2]
                matrix.multiply(part, first, stop - first, *there, *NO_BIAS, 2, True)
            assert (np.abs(y.double().numpy() - due) <= 2**-8 * np.abs(due) + 1e-5 * bound).all(), kernels
            results.append(y)
    finally:
        native.select_kernels(kernels_before)
    assert all(torch.equal(y, results[0]) for y in results)


@pytest.mark.parametrize(
    ("tokens", "dtype", "is_rounded"), [(32, "f16", True), (33, "f16", False), (1, "f32", False)]
)
def test_few_tokens_of_16_bits_are_rounded_where_that_is_allowed(
    tokens: int, dtype: str, is_rounded: bool
) -> None:
    generator = np.random.default_rng(11)
    scale = GroupNumbers(np.ones((3, 2), np.float32), "f32")
    matrix = CodeMatrix((3, 256), "u4", groups=Groups(128, scale))
    codes = packed(generator, 3 * 256, "u4")
    x = torch.randn(tokens, 256, generator=torch.Generator().manual_seed(3))
    x = x.half() if dtype == "f16" else x
    found = []
    for rounds in (False, True):
        y = torch.empty(tokens, 3, dtype=x.dtype)
        matrix.multiply(
            codes, 0, 3, x.data_ptr(), FLOATS[dtype][0], tokens, y.data_ptr(), *NO_BIAS, 1, rounds
        )
        found.append(y)
    assert torch.equal(*found) != is_rounded


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_token_that_is_no_number_spoils_no_other(value: float) -> None:
    codes = packed(np.random.default_rng(12), 4 * 256, "u4")
    scale = GroupNumbers(np.ones((4, 4), np.float32), "f32")
    matrix = CodeMatrix((4, 256), "u4", groups=Groups(64, scale))
    x = torch.randn(3, 256, generator=torch.Generator().manual_seed(4)).bfloat16()
    results = []
    for spoiled in (False, True):
        x[1, 100] = value if spoiled else 1
        y = torch.empty(3, 4, dtype=torch.bfloat16)
        matrix.multiply(codes, 0, 4, x.data_ptr(), FLOATS["bf16"][0], 3, y.data_ptr(), *NO_BIAS, 1, True)
        results.append(y)
    assert torch.equal(results[0][[0, 2]], results[1][[0, 2]])
    assert not results[1][1].isfinite().any()


def test_values_of_codes_that_are_no_numbers_spoil_their_rows_alone() -> None:
    values = small_float_values("f8_e4m3")
    groups = Groups(64, GroupNumbers(np.ones((4, 2), np.float32), "f32"))
    matrix = CodeMatrix((4, 100), "f8_e4m3", groups=groups, values=values)
    codes = np.full((4, 100), 0x38, np.uint8)  # 1
    codes[1, 77] = 0x7F
    for dtype in (torch.float32, torch.bfloat16):
        x, y = torch.ones(1, 100).to(dtype), torch.empty(1, 4).to(dtype)
        number = FLOATS["f32" if dtype == torch.float32 else "bf16"][0]
        matrix.multiply(codes, 0, 4, x.data_ptr(), number, 1, y.data_ptr(), *NO_BIAS, 1)
        assert y[0, [0, 2, 3]].tolist() == [100, 100, 100]
        assert y[0, 1].isnan()


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_runs_of_rows_in_another_order_with_bias_in_every_float_type(dtype: str) -> None:
    generator = np.random.default_rng(3)
    rows, columns, tokens = 9, 70, 3
    codes = packed(generator, rows * columns, "i8")
    row = generator.normal(0, 1, rows).astype(np.float32)
    order, permutation = generator.permutation(rows), generator.permutation(columns)
    outliers = some_outliers(generator, rows, columns)
    torch_dtype = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[dtype]
    # Subnormal halves among them, and none that leaves a half's range.
    x = (torch.randn(tokens, columns) * 2.0 ** torch.randint(-18, 1, (tokens, columns))).to(torch_dtype)
    bias, y = torch.randn(rows).to(torch_dtype), torch.full((tokens, rows), torch.nan, dtype=torch_dtype)
    number = FLOATS[dtype][0]
    matrix = CodeMatrix(
        (rows, columns), "i8", row=row, outliers=outliers, permutation=permutation, order=order
    )
    for first, stop in ((0, 4), (4, 9)):
        part = codes[first * columns : stop * columns]
        matrix.multiply(
            part, first, stop - first, x.data_ptr(), number, tokens, y.data_ptr(), bias.data_ptr(), number, 0
        )
    weights = np.empty((rows, columns), np.float32)
    dequantize_uniform(codes, "i8", row, None, weights, "f32")
    replace(weights, outliers)
    exact = torch.empty(tokens, rows, dtype=torch.float64)
    exact[:, order] = x.double()[:, permutation] @ torch.from_numpy(weights).double().t()
    exact += bias.double()
    assert torch.allclose(y.double(), exact, rtol=2 * torch.finfo(torch_dtype).eps, atol=1e-3)


@pytest.mark.parametrize("columns", [1, 32, 70, 1024, 2100])
@pytest.mark.parametrize("is_permuted", [False, True])
@pytest.mark.parametrize("form", ["plain", "columns", "outliers"])
def test_bytes_times_bf16(columns: int, is_permuted: bool, form: str) -> None:
    generator = np.random.default_rng(6)
    rows, tokens = 7, 21
    codes = packed(generator, rows * columns, "i8")
    row = generator.normal(0, 1, rows).astype(np.float32)
    permutation = generator.permutation(columns) if is_permuted else None
    column = None if form == "plain" else generator.uniform(0.5, 2, columns).astype(np.float32)
    outliers = some_outliers(generator, rows, columns) if form == "outliers" else None
    x = torch.randn(tokens, columns).bfloat16()
    matrix = CodeMatrix(
        (rows, columns), "i8", row=row, column=column, outliers=outliers, permutation=permutation
    )
    weights = np.empty((rows, columns), np.float32)
    dequantize_uniform(codes, "i8", row, column, weights, "f32")
    if outliers:
        replace(weights, outliers)
    used = x if permutation is None else x[:, permutation]
    exact = used.double() @ torch.from_numpy(weights).double().t()
    results = []
    for n in (1, tokens):
        y = torch.full((n, rows), torch.nan, dtype=torch.bfloat16)
        number = FLOATS["bf16"][0]
        matrix.multiply(codes, 0, rows, x.data_ptr(), number, n, y.data_ptr(), *NO_BIAS, 2)
        # One more rounding to BF16 where the factors of columns are put into the activations.
        bound = used.abs().double() @ torch.from_numpy(weights).abs().double().t()
        assert ((y.double() - exact[:n]).abs() <= 2**-8 * (exact[:n].abs() + bound[:n])).all()
        results.append(y)
    assert torch.equal(results[0][0], results[1][0])


def test_every_backend_number_of_threads_and_of_tokens_gives_the_same_bits() -> None:
    generator = np.random.default_rng(4)
    rows, columns, tokens = 300, 1030, 21
    row, x = np.ones(rows, np.float32), generator.normal(0, 1, (tokens, columns)).astype(np.float32)
    scale = generator.normal(0, 1, (rows, 17)).astype(np.float32)
    codes = packed(generator, rows * columns, "i8")
    uniform = CodeMatrix((rows, columns), "i8", row=row)
    grouped = CodeMatrix((rows, columns), "u4", groups=Groups(61, GroupNumbers(scale, "f32")))
    of_levels = [
        CodeMatrix(
            (rows, columns),
            f"u{bits}",
            groups=Groups(61, GroupNumbers(scale, "f32")),
            values=generator.normal(0, 1, 1 << bits).astype(np.float32),
        )
        for bits in (2, 4, 8)
    ]
    results = []
    before = native.active_kernels()
    try:
        for kernels in native.available_kernels():
            native.select_kernels(kernels)
            for n_threads in (1, 2):
                y = product(grouped, codes, x, n_threads)
                others = [product(matrix, codes, x, n_threads) for matrix in of_levels]
                results.append([product(uniform, codes, x, n_threads), y, *others])
                assert np.array_equal(product(uniform, codes, x[20:], n_threads), results[0][0][20:])
    finally:
        native.select_kernels(before)
    assert all(np.array_equal(results[0], other) for other in results[1:])


def matrices_of_one_input(generator: np.random.Generator, columns: int) -> list[tuple[CodeMatrix, Any]]:
    """Some whose tokens are rounded once for all, and of every other kind that wants them in a form of its own."""

    def grouped(rows: int, dtype: str, size: int, **options: Any) -> tuple[CodeMatrix, Any]:
        def numbers() -> GroupNumbers:
            return GroupNumbers(generator.uniform(0.5, 1, (rows, columns // size)).astype(np.float16), "f16")

        groups = Groups(size, numbers(), minimum=numbers() if dtype == "u4" else None)
        codes = packed(generator, rows * columns, dtype)
        return CodeMatrix((rows, columns), dtype, groups=groups, **options), codes

    row = generator.uniform(0.5, 1, 77).astype(np.float32)
    return [
        grouped(301, "u4", 32),
        grouped(6, "u4", 32),
        grouped(130, "i4", 32),
        grouped(9, "u4", 32, permutation=generator.permutation(columns)),
        grouped(70, "u4", 64, outliers=some_outliers(generator, 70, columns)),
        grouped(33, "i8", 64),
        grouped(50, "u2", 64),
        (CodeMatrix((77, columns), "i8", row=row), packed(generator, 77 * columns, "i8")),
        grouped(1, "u4", 32),
    ]


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
@pytest.mark.parametrize("tokens", [1, 5])
def test_matrices_of_one_input_give_the_bits_that_each_gives_alone(dtype: str, tokens: int) -> None:
    generator = np.random.default_rng(6)
    columns = 256
    pairs = matrices_of_one_input(generator, columns)
    together = CodeMatrices(pairs)
    x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(4))
    x = x.bfloat16() if dtype == "bf16" else x
    bias = torch.randn(301, generator=torch.Generator().manual_seed(5))
    biases = [Floats(bias.data_ptr(), FLOATS["f32"][0]), *[NO_BIAS] * (len(pairs) - 1)]
    there = (x.data_ptr(), FLOATS[dtype][0], tokens)
    kernels_before = native.active_kernels()
    try:
        for kernels in native.available_kernels():
            native.select_kernels(kernels)
            for rounds, n_threads in ((False, 1), (True, 2), (True, 1)):
                alone, beside = (
                    [torch.full((tokens, matrix.shape[0]), torch.nan, dtype=x.dtype) for matrix, _ in pairs]
                    for _ in range(2)
                )
                for (matrix, codes), y, added in zip(pairs, alone, biases, strict=True):
                    matrix.multiply(
                        codes, 0, matrix.shape[0], *there, y.data_ptr(), *added, n_threads, rounds
                    )
                outputs = [
                    number
                    for y, added in zip(beside, biases, strict=True)
                    for number in (y.data_ptr(), *added)
                ]
                together.multiply(*there, tuple(outputs), n_threads, rounds)
                assert all(torch.equal(a, b) for a, b in zip(alone, beside, strict=True)), kernels
                assert not any(y.isnan().any() for y in beside)
    finally:
        native.select_kernels(kernels_before)


def test_matrices_that_are_not_of_one_input_are_refused() -> None:
    generator = np.random.default_rng(7)
    one, other = (
        (CodeMatrix((2, n), "i8", row=np.ones(2, np.float32)), packed(generator, 2 * n, "i8"))
        for n in (64, 32)
    )
    with pytest.raises(ValueError, match="differ in columns"):
        CodeMatrices([one, other])
    with pytest.raises(ValueError, match="no matrices"):
        CodeMatrices([])
    with pytest.raises(ValueError, match="codes"):
        CodeMatrices([one, (one[0], one[1][:-1])])
    with pytest.raises(ValueError, match="three numbers"):
        CodeMatrices([one]).multiply(0, 0, 1, (0, 0), 1, False)


def test_tokens_are_rounded_and_their_integer_products_scaled() -> None:
    generator = np.random.default_rng(5)
    rows, columns, tokens = 7, 100, 5
    row, column = (generator.uniform(0.5, 2, n).astype(np.float32) for n in (rows, columns))
    weights = generator.integers(-127, 128, (rows, columns), np.int8)
    x = generator.normal(0, 1, (tokens, columns)).astype(np.float32)
    x[2] = 0
    rounded, scale = np.empty((tokens, columns), np.int8), np.empty(tokens, np.float32)
    before = native.active_kernels()
    try:
        for kernels in native.available_kernels():
            native.select_kernels(kernels)
            matrix = CodeMatrix((rows, columns), "i8", row=row, column=column)
            matrix.round(*Floats.of(x, "f32"), tokens, rounded.ctypes.data, scale.ctypes.data, 0)
            scaled = x * column
            largest = np.abs(scaled).max(1)
            assert np.array_equal(scale, np.where(largest > 0, largest / np.float32(127), 1))
            assert np.array_equal(rounded, np.rint(scaled / scale[:, None]))
            sums = rounded.astype(np.int32) @ weights.astype(np.int32).T
            y = np.empty((tokens, rows), np.float32)
            matrix.finish(
                sums.ctypes.data, scale.ctypes.data, 0, rows, tokens, *Floats.of(y, "f32"), *NO_BIAS, 0
            )
            assert np.array_equal(y, sums.astype(np.float32) * row * scale[:, None])
    finally:
        native.select_kernels(before)


ROW = np.ones(3, np.float32)
NONE = OutlierRows(np.zeros(4, np.int64), np.empty(0, np.uint32), np.empty(0, np.float32))


@pytest.mark.parametrize(
    "changes",
    [
        {"row": ROW[:2]},
        {"row": ROW.astype(np.float64)},
        {"column": np.ones(7, np.float32)},
        {"order": np.array([0, 1])},
        {"order": np.array([0, 1, 3])},
        {"permutation": np.arange(8) - 1},
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
def test_parameters_that_do_not_fit_are_refused(changes: dict[str, Any]) -> None:
    CodeMatrix((3, 8), "i8", row=ROW)
    with pytest.raises(ValueError, match=r"not|differ|ascend|passes"):
        CodeMatrix((3, 8), "i8", **{"row": ROW} | changes)


ONES = GroupNumbers(np.ones((3, 2), np.float32), "f32")


@pytest.mark.parametrize(
    "groups",
    [
        Groups(0, ONES),
        Groups(3, ONES),
        Groups(4, ONES._replace(dtype="f16")),
        Groups(4, ONES._replace(values=np.ones((2, 3), np.float32).T)),
        Groups(4, ONES, zero_point=ONES._replace(values=np.ones((3, 3), np.float32))),
        Groups(4, ONES, zero_point=ONES, minimum=ONES),
        Groups(4, ONES._replace(steps=np.ones(5, np.float16))),
        Groups(4, ONES._replace(steps=np.ones(6, np.float16), zeros=np.ones(7, np.float16))),
        Groups(4, ONES._replace(steps=np.ones(6, np.float16), tile=(0, 1))),
        Groups(4, ONES._replace(steps=np.ones(6, np.float16), minimums=np.ones(7, np.float16))),
        Groups(4, ONES._replace(table=np.ones(256, np.float32))),
        Groups(4, ONES, rows=2),
        Groups(4, ONES, rows=0),
        Groups(4, ONES, stacked_rows=2),
    ],
)
def test_numbers_of_groups_that_do_not_fit_are_refused(groups: Groups) -> None:
    CodeMatrix((3, 8), "u4", groups=Groups(4, ONES))
    with pytest.raises(
        ValueError, match=r"not one|group_size|not contiguous|exclude|empty|not u8|whole matrices"
    ):
        CodeMatrix((3, 8), "u4", groups=groups)


def test_zeros_and_minimums_of_supergroups_exclude_each_other() -> None:
    steps = np.ones(6, np.float16)
    both = ONES._replace(steps=steps, zeros=steps, minimums=steps)
    with pytest.raises(ValueError, match="zeros and minimums exclude each other"):
        CodeMatrix((3, 8), "u4", groups=Groups(4, both))


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("u4", np.ones(8, np.float32)),
        ("u4", np.ones(16, np.float64)),
        ("i4", np.ones(16, np.float32)),
        ("f8_e4m3", None),
    ],
)
def test_values_of_codes_that_do_not_fit_are_refused(dtype: str, values: Any) -> None:
    with pytest.raises(ValueError, match=r"not float32|numbers of them|not given values"):
        CodeMatrix((3, 8), dtype, groups=Groups(4, ONES), values=values)
    with pytest.raises(ValueError, match="in groups"):
        CodeMatrix((3, 8), "u4", row=ROW, values=np.ones(16, np.float32))


def test_codes_that_do_not_fit_are_refused() -> None:
    matrix, neither = CodeMatrix((3, 8), "i8", row=ROW), CodeMatrix((3, 8), "i8")
    x, y = np.ones(8, np.float32), np.empty(3, np.float32)
    there = (*Floats.of(x, "f32"), 1, Floats.of(y, "f32").address, *NO_BIAS, 1)
    matrix.multiply(bytes(24), 0, 3, *there)
    for codes, first, n_rows in ((bytes(23), 0, 3), (bytes(24), 1, 3), (bytes(32), 0, 4)):
        with pytest.raises(ValueError, match=r"fewer|rows that the matrix has not"):
            matrix.multiply(codes, first, n_rows, *there)
    with pytest.raises(ValueError, match="neither row factors nor groups"):
        neither.multiply(bytes(24), 0, 3, *there)
    with pytest.raises(ValueError, match="not contiguous float32"):
        Floats.of(np.ones(8), "f32")
