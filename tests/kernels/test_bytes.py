"""CRC-32, histogram and byte planes against zlib and numpy."""

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spqfmt.codecs.elements import CARRIERS, element_bits, order0_bits, to_planes
from spqfmt.kernels import backend, native
from spqfmt.wire import DTYPES

CRC_SIZES = [*range(70), 127, 128, 129, 255, 511, 512, 513, 767, 768, 1023, 4096 + 17, (1 << 20) + 3]


@pytest.mark.parametrize("offset", [0, 1, 7])
def test_crc32(each_backend, offset):
    data = np.random.default_rng(0).integers(0, 256, (1 << 20) + 16, dtype=np.uint8)
    for n in CRC_SIZES:
        piece = data[offset : offset + n]
        assert native.crc32(piece) == zlib.crc32(piece), n
        assert native.crc32(piece, 0xDEADBEEF) == zlib.crc32(piece, 0xDEADBEEF), n


@given(st.lists(st.binary(max_size=900), max_size=5))
def test_crc32_in_pieces(pieces):
    for name in native.available_kernels():
        with backend.use(name):
            value = 0
            for piece in pieces:
                value = native.crc32(piece, value)
            assert value == zlib.crc32(b"".join(pieces))


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 1000, (1 << 20) + 3])
def test_histogram(source, n):
    data = source(n)
    assert np.array_equal(native.histogram(data), np.bincount(data, minlength=256))


@pytest.mark.parametrize("itemsize", [1, 2, 4, 8])
@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("n", [0, 1, 3, 15, 16, 17, 1000])
def test_planes(itemsize, rotate, n):
    data = np.random.default_rng(n).integers(0, 256, n * itemsize, dtype=np.uint8)
    elements = data.view(f"<u{itemsize}")
    bits = 8 * itemsize
    if rotate:
        elements = (elements << elements.dtype.type(1)) | (elements >> elements.dtype.type(bits - 1))
    expected = np.ascontiguousarray(elements).view(np.uint8).reshape(n, itemsize).T.reshape(-1)
    planes, merged = np.empty_like(data), np.empty_like(data)
    native.split_planes(data, itemsize, rotate, planes)
    assert np.array_equal(planes, expected)
    native.merge_planes(planes, itemsize, rotate, merged)
    assert np.array_equal(merged, data)


def test_rotation_puts_the_sign_lowest():
    values = np.array([-1.5, 1.5], np.float32)
    planes = np.empty(8, np.uint8)
    native.split_planes(values, 4, True, planes)
    assert (planes[:2] & 1).tolist() == [1, 0]
    assert planes[6:].tolist() == [127, 127]  # the exponent alone


@pytest.mark.parametrize("call", [native.split_planes, native.merge_planes])
def test_bad_planes(call):
    with pytest.raises(ValueError, match="itemsize"):
        call(bytes(9), 3, False, bytearray(9))
    with pytest.raises(ValueError, match="whole number"):
        call(bytes(9), 2, False, bytearray(9))
    with pytest.raises(ValueError, match="differ"):
        call(bytes(8), 2, False, bytearray(10))


@pytest.mark.parametrize("n", [1, 3, 8, 4096, 4099])
@pytest.mark.parametrize(
    "dtype", [name for name, dtype in DTYPES.items() if dtype.bits <= 8 and name != "bool"]
)
def test_the_entropy_of_packed_elements_is_that_of_each(dtype: str, n: int) -> None:
    bits = DTYPES[dtype].bits
    codes = np.random.default_rng(n).integers(0, 1 << bits, n) ** 2 % (1 << bits)
    elements = codes.astype(np.uint8)
    if dtype.startswith("i") and bits < 8:
        elements[codes >= 1 << (bits - 1)] -= np.uint8(1 << bits)
    [plane] = to_planes(elements.view(CARRIERS[dtype]), dtype)
    assert element_bits(plane, dtype, n) == order0_bits(elements)
