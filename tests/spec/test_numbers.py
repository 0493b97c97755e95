"""The reference decoder's arithmetic against numpy's."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from spq_reference.numbers import bits_from_float, elements, fl, float_from_bits

f32 = st.floats(width=32)
bits32 = st.integers(0, 2**32 - 1)


def bits(x: np.float32) -> int:
    return int(x.view(np.uint32))


@given(f32, f32)
def test_one_operation_rounds_like_binary32(a, b):
    x, y = np.float32(a), np.float32(b)
    with np.errstate(all="ignore"):
        pairs = [(fl(a + b), x + y), (fl(a - b), x - y), (fl(a * b), x * y)]
    for ours, theirs in pairs:
        assert np.isnan(ours) == np.isnan(theirs)
        assert np.isnan(ours) or bits(np.float32(ours)) == bits(theirs)


def test_every_f16_and_bf16_widens_and_comes_back():
    for dtype in ("f16", "bf16"):
        stored = np.arange(65536, dtype=np.uint16)
        wide = stored.view(np.float16).astype(np.float32) if dtype == "f16" else None
        if wide is None:
            wide = (stored.astype(np.uint32) << 16).view(np.float32)
        for element, number in zip(stored.tolist(), wide.tolist(), strict=True):
            ours = float_from_bits(element, dtype)
            assert ours == number or (np.isnan(ours) and np.isnan(number))
            if not np.isnan(number):
                assert bits_from_float(ours, dtype) == element


@given(bits32)
def test_narrowing_is_numpy_s(stored):
    number = np.uint32(stored).view(np.float32)
    if np.isnan(number):
        return
    with np.errstate(over="ignore"):
        assert bits_from_float(float(number), "f16") == int(number.astype(np.float16).view(np.uint16))
    assert bits_from_float(float(number), "f32") == stored
    rounded = (stored + 0x7FFF + (stored >> 16 & 1)) >> 16
    assert bits_from_float(float(number), "bf16") == rounded
    assert bits_from_float(float(number), "f64") == int(np.float64(number).view(np.uint64))


def test_packed_elements_begin_in_the_lowest_bits():
    assert elements("u2", [b"\xe4\x01"], 5) == [0, 1, 2, 3, 1]
    assert elements("i4", [b"\x7f\x08"], 3) == [-1, 7, -8]
    assert elements("bf16", [b"\x01", b"\x7f"], 1) == [0xBF80]  # -1.0: the sign lies in plane 0
