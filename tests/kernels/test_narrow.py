"""Codes in 4 bits with escapes: they come back as they were, and products with them are those with the codes."""

from typing import Any

import numpy as np
import pytest

from spqfmt.kernels import native
from spqfmt.kernels.multiply import NO_BIAS, CodeMatrix, Floats, GroupNumbers, Groups, OutlierRows
from spqfmt.kernels.narrow import NarrowCodes, narrow, narrow_bytes, widen


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
            for dtype, rounds in (("f32", False), ("bf16", False), ("bf16", True)):
                given = x if dtype == "f32" else (x.view(np.uint32) >> 16).astype(np.uint16)
                found = []
                try:
                    native.select_kernels(backend)
                    for form, n_threads in ((codes, 1), (held, 1), (held, 2)):
                        y = np.zeros((3, rows), given.dtype)
                        there = (*Floats.of(given, dtype), 3, y.ctypes.data)
                        matrix.multiply(form, 0, rows, *there, *NO_BIAS, n_threads, rounds)
                        found.append(y)
                finally:
                    native.select_kernels(before)
                assert found[0].any()
                assert np.array_equal(found[0], found[1])
                assert np.array_equal(found[0], found[2])
