"""Codes stored by columns, turned to rows."""

import numpy as np
import pytest

from spqfmt.codecs.elements import from_planes, to_planes
from spqfmt.kernels import native


@pytest.mark.parametrize("shape", [(1, 1), (16, 16), (32, 48), (15, 17), (70, 130), (3, 1000), (200, 96)])
@pytest.mark.parametrize("n_threads", [1, 2])
def test_bytes(shape: tuple[int, int], n_threads: int) -> None:
    stored = np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)
    out = np.empty(shape[::-1], np.uint8)
    native.turn(stored, *shape, 8, out, n_threads)
    assert np.array_equal(out, stored.T)


@pytest.mark.parametrize("shape", [(1, 1), (4, 6), (3, 5), (70, 130)])
@pytest.mark.parametrize("bits", [2, 4])
def test_packed_codes(shape: tuple[int, int], bits: int) -> None:
    codes = np.random.default_rng(2).integers(0, 1 << bits, shape).astype(np.uint8)
    (stored,) = to_planes(codes.reshape(-1), f"u{bits}")
    out = np.empty_like(stored)
    native.turn(stored, *shape, bits, out)
    turned = np.empty(codes.size, np.uint8)
    from_planes(out, f"u{bits}", codes.size, turned)
    assert np.array_equal(turned.reshape(shape[::-1]), codes.T)


@pytest.mark.parametrize("n", [1, 7, 8, 4 * (1 << 14) + 8])
@pytest.mark.parametrize("dtype", ["u2", "i2", "u4", "i4"])
def test_narrow_elements_lie_without_gaps(dtype: str, n: int) -> None:
    """The first in the lowest bits (FORMAT.md 3.2), of elements with a sign its bits alone."""
    bits = int(dtype[1])
    elements = np.random.default_rng(3).integers(0, 256, n, np.uint8)
    elements = elements.astype(np.int8) >> (8 - bits) if dtype.startswith("i") else elements >> (8 - bits)
    (stored,) = to_planes(elements.astype("i1" if dtype.startswith("i") else "u1"), dtype)
    per_byte = 8 // bits
    low = np.pad(elements.astype(int) & ((1 << bits) - 1), (0, -n % per_byte)).reshape(-1, per_byte)
    assert stored.tolist() == (low << np.arange(0, 8, bits)).sum(1).tolist()


@pytest.mark.parametrize("arguments", [(3, 5, 3), (3, 5, 16), (4, 5, 8), (1 << 40, 1 << 40, 8)])
def test_what_does_not_fit_is_refused(arguments: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # which number is wrong depends on the others
        native.turn(np.zeros(15, np.uint8), *arguments, np.zeros(15, np.uint8))
