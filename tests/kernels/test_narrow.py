"""Codes in 4 bits with escapes: they come back as they were, and products with them are those with the codes."""

from typing import Any

import numpy as np
import pytest

from spqfmt.kernels import native
from spqfmt.kernels.multiply import NO_BIAS, CodeMatrix, Floats, GroupNumbers, Groups, OutlierRows
from spqfmt.kernels.narrow import NarrowCodes, PieceCodes, narrow, narrow_bytes, widen


def low_entropy(generator: np.random.Generator, n: int, center: int = 0) -> Any:
    """Codes about `center` as bytes, some of them far away."""
    codes = (generator.normal(center, 2, n).round().astype(np.int64) % 256).astype(np.uint8)
    far = generator.integers(0, n, n // 300 + 1)
    codes[far] = generator.integers(0, 256, far.size)
    return codes


def narrowed(codes: Any) -> Any:
    out = np.zeros(narrow_bytes(codes.size, codes.size // 20 + 1), np.uint8)
    assert narrow(codes, out)
    return out


@pytest.mark.parametrize("center", [0, 128, 250])
@pytest.mark.parametrize("n", [1, 2, 63, 65, 65535, 65537, 200001])
def test_codes_come_back(n: int, center: int) -> None:
    codes = low_entropy(np.random.default_rng(n), n, center)
    for backend in native.available_kernels():
        before = native.active_kernels()
        try:
            native.select_kernels(backend)
            for n_threads in (1, 2):
                back = np.zeros(n, np.uint8)
                widen(narrowed(codes), back, n_threads)
                assert np.array_equal(back, codes)
        finally:
            native.select_kernels(before)


def test_the_room_is_exactly_that_of_the_escapes() -> None:
    codes = np.zeros(1000, np.uint8)
    codes[[3, 700]] = 100, 200
    assert narrow(codes, np.zeros(narrow_bytes(1000, 2), np.uint8))
    assert not narrow(codes, np.zeros(narrow_bytes(1000, 2) - 1, np.uint8))
    assert narrow_bytes(1000, 2) == 8 + 500 + 2 * 4 + 2 * 3


def test_what_is_no_narrow_form_of_so_many_codes_is_refused() -> None:
    out = narrowed(np.zeros(1000, np.uint8))
    for wrong in (out[:500], np.full(out.size, 255, np.uint8)):
        with pytest.raises(ValueError, match="no narrow form of so many codes"):
            widen(wrong, np.zeros(1000, np.uint8))
    matrix = CodeMatrix((10, 100), "i8", row=np.ones(10, np.float32))
    x, y = np.zeros(100, np.float32), np.zeros(10, np.float32)
    there = (*Floats.of(x, "f32"), 1, y.ctypes.data, *NO_BIAS, 1, False)
    for codes in (NarrowCodes([(out, 20)], 50), NarrowCodes([(narrowed(np.zeros(900, np.uint8)), 9)], 100)):
        with pytest.raises(ValueError, match=r"another matrix|fewer than the matrix has"):
            matrix.multiply(codes, 0, 10, *there)


def matrices(generator: np.random.Generator, rows: int, columns: int) -> list[CodeMatrix]:
    """Of every kind that 8-bit codes are multiplied in."""
    row, column = (generator.normal(0, 1, n).astype(np.float32) for n in (rows, columns))
    begin = np.arange(rows + 1, dtype=np.int64) * 2
    at = np.sort(np.argsort(generator.random((rows, columns)), 1)[:, :2], 1).astype(np.uint32).reshape(-1)
    outliers = OutlierRows(begin, at, generator.normal(0, 9, 2 * rows).astype(np.float32))
    permutation, order = generator.permutation(columns), generator.permutation(rows)

    def groups(size: int) -> Groups:
        shape = (rows, -(-columns // size))
        scale, minimum = (generator.normal(0, 1, shape).astype(np.float32) for _ in range(2))
        return Groups(size, GroupNumbers(scale, "f32"), minimum=GroupNumbers(minimum, "f32"))

    shape = (rows, columns)
    return [
        CodeMatrix(shape, "i8", row=row, column=column),
        CodeMatrix(shape, "i8", row=row, column=column, outliers=outliers, order=order),
        CodeMatrix(shape, "i8", row=row, permutation=permutation),
        CodeMatrix(shape, "u8", groups=groups(16), order=order),
        CodeMatrix(shape, "i8", groups=groups(64), outliers=outliers, permutation=permutation),
        CodeMatrix(shape, "u8", groups=groups(48), values=generator.normal(0, 1, 256).astype(np.float32)),
    ]


@pytest.mark.parametrize(("rows", "columns"), [(67, 1030), (300, 257), (9, 8200), (5, 64)])
def test_products_have_the_bits_of_those_with_the_codes(rows: int, columns: int) -> None:
    generator = np.random.default_rng(rows)
    codes = low_entropy(generator, rows * columns, center=3)
    cut = rows // 3
    runs = [(codes[: cut * columns], cut), (codes[cut * columns :], rows - cut)]
    held = NarrowCodes([(narrowed(run), n) for run, n in runs], columns)
    x = generator.normal(0, 1, (3, columns)).astype(np.float32)
    before = native.active_kernels()
    for matrix in matrices(generator, rows, columns):
        for backend in native.available_kernels():
            for dtype, rounds, n_tokens in (
                ("f32", False, 3),
                ("bf16", False, 3),
                ("bf16", False, 1),
                ("bf16", True, 3),
            ):
                given = (x if dtype == "f32" else (x.view(np.uint32) >> 16).astype(np.uint16))[:n_tokens]
                found = []
                try:
                    native.select_kernels(backend)
                    for form, n_threads in ((codes, 1), (held, 1), (held, 2)):
                        y = np.zeros((n_tokens, rows), given.dtype)
                        there = (*Floats.of(given, dtype), n_tokens, y.ctypes.data)
                        matrix.multiply(form, 0, rows, *there, *NO_BIAS, n_threads, rounds)
                        found.append(y)
                finally:
                    native.select_kernels(before)
                assert found[0].any()
                assert np.array_equal(found[0], found[1])
                assert np.array_equal(found[0], found[2])


WIDTHS = (256, 1, 40, 255)
"""Columns of the pieces."""


def as_dtype(x: Any, dtype: str) -> Any:
    """Numbers of another type, as arrays have them."""
    return {"f32": x, "bf16": (x.view(np.uint32) >> 16).astype(np.uint16), "f16": x.astype(np.float16)}[dtype]


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("n_tokens", [1, 5])
def test_pieces_of_columns_are_products_whose_floats_are_added(dtype: str, n_tokens: int) -> None:
    generator, rows, columns = np.random.default_rng(n_tokens), 131, sum(WIDTHS)
    row, column = (generator.normal(0, 1, n).astype(np.float32) for n in (rows, columns))
    permutation = generator.permutation(columns)
    x, bias = (generator.normal(0, 1, shape).astype(np.float32) for shape in ((n_tokens, columns), rows))
    given, added = (np.ascontiguousarray(as_dtype(values, dtype)) for values in (x, bias))
    codes = [low_entropy(generator, rows * width) for width in WIDTHS]
    # What is narrow takes even columns only where that is direct.
    forms: list[Any] = [NarrowCodes([(narrowed(codes[0]), rows)], WIDTHS[0]), *codes[1:3]]
    forms.append(NarrowCodes([(narrowed(codes[3]), rows)], WIDTHS[3]))
    matrix = CodeMatrix((rows, columns), "i8", row=row, column=column, permutation=permutation)
    there = Floats.of(given, dtype)
    before = native.active_kernels()
    for backend in native.available_kernels():
        try:
            native.select_kernels(backend)
            total = np.zeros((n_tokens, rows), np.float32)
            begin = 0
            for width, own in zip(WIDTHS, codes, strict=True):
                here = slice(begin, begin + width)
                piece = CodeMatrix((rows, width), "i8", row=row, column=column[here])
                inputs, y = np.ascontiguousarray(given[:, permutation[here]]), np.zeros_like(total)
                piece.multiply_to_floats(own, *Floats.of(inputs, dtype), n_tokens, y.ctypes.data, 1)
                total += y
                begin += width
            for held in (codes, forms):
                pieces = PieceCodes(list(zip(held, WIDTHS, strict=True)), rows)
                for n_threads in (1, 2):
                    y = np.zeros((n_tokens, rows), np.float32)
                    matrix.multiply_to_floats(pieces, *there, n_tokens, y.ctypes.data, n_threads)
                    assert total.any()
                    assert np.array_equal(y, total)
                    out = np.zeros_like(given, shape=(n_tokens, rows))
                    matrix.multiply(
                        pieces,
                        0,
                        rows,
                        *there,
                        n_tokens,
                        out.ctypes.data,
                        *Floats.of(added, dtype),
                        n_threads,
                        True,
                    )
                    near = out if dtype != "bf16" else (out.astype(np.uint32) << 16).view(np.float32)
                    own_bias = added if dtype != "bf16" else (added.astype(np.uint32) << 16).view(np.float32)
                    assert np.allclose(near, total + own_bias.astype(np.float32), rtol=2**-7, atol=2**-10)
        finally:
            native.select_kernels(before)


def test_pieces_that_do_not_fit_are_refused() -> None:
    codes = np.zeros(10 * 8, np.uint8)
    for pieces in ([], [(codes, 9)], [(codes, 0)], [(NarrowCodes([(narrowed(codes), 10)], 8), 4)]):
        with pytest.raises(ValueError, match="piece"):
            PieceCodes(pieces, 10)
    held = PieceCodes([(codes, 8), (codes, 8)], 10)
    x, y, row = np.zeros(16, np.float32), np.zeros(10, np.float32), np.ones(10, np.float32)
    there = (*Floats.of(x, "f32"), 1, y.ctypes.data, *NO_BIAS, 1, False)
    order = np.arange(16)
    for matrix, first, n_rows in (
        (CodeMatrix((10, 16), "i8", row=row), 0, 10),
        (CodeMatrix((10, 16), "u8", row=row, permutation=order), 0, 10),
        (CodeMatrix((10, 15), "i8", row=row, permutation=order[:15]), 0, 10),
        (CodeMatrix((10, 16), "i8", row=row, permutation=order), 0, 9),
        (CodeMatrix((10, 16), "i8", row=row, permutation=order), 1, 9),
    ):
        with pytest.raises(ValueError, match="pieces are"):
            matrix.multiply(held, first, n_rows, *there)
