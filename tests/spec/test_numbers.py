"""The reference decoder's arithmetic against numpy's."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from spq_reference.numbers import (
    bits_from_float,
    elements,
    fl,
    float_from_bits,
    packed_bytes,
    packed_elements,
    small_float,
)

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


@pytest.mark.parametrize("dtype", ["f8_e4m3", "f8_e5m2", "f8_e4m3fnuz", "f8_e5m2fnuz", "f8_e8m0"])
def test_small_floats_are_torch_s(dtype):
    of_torch = getattr(
        torch, {"f8_e4m3": "float8_e4m3fn", "f8_e8m0": "float8_e8m0fnu"}.get(dtype, f"float8_{dtype[3:]}")
    )
    theirs = torch.arange(256, dtype=torch.uint8).view(of_torch).float().numpy()
    ours = np.array([small_float(element, dtype) for element in range(256)], np.float32)
    assert np.array_equal(np.isnan(ours), np.isnan(theirs))
    known = ~np.isnan(theirs)
    assert ours[known].tobytes() == theirs[known].tobytes()


def test_floats_of_4_and_6_bits_are_those_of_microscaling():
    halves = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert [small_float(element, "f4_e2m1") for element in range(8)] == halves
    e2m3 = [k / 8 for k in range(16)] + [k / 4 for k in range(8, 16)] + [k / 2 for k in range(8, 16)]
    assert [small_float(element, "f6_e2m3") for element in range(32)] == e2m3
    e3m2 = [k / 16 for k in range(8)] + [k / 16 * 2**j for j in range(1, 7) for k in range(4, 8)]
    assert [small_float(element, "f6_e3m2") for element in range(32)] == e3m2
    for dtype, half in (("f4_e2m1", 8), ("f6_e2m3", 32), ("f6_e3m2", 32)):
        for element in range(half):
            negative = small_float(half + element, dtype)
            assert negative == -small_float(element, dtype)
            assert np.signbit(negative)


@given(st.sampled_from([2, 4, 6]), st.lists(st.integers(0, 63), max_size=40))
def test_packed_elements_come_back(bits, values):
    values = [value % (1 << bits) for value in values]
    raw = packed_bytes(bits, values)
    assert len(raw) == -(-len(values) * bits // 8)
    assert packed_elements(bits, raw, len(values)) == values
