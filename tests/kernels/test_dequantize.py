"""Native dequantization against the formulas in numpy, bit for bit."""

import numpy as np
import pytest
import torch

from spqfmt.kernels import backend, native
from spqfmt.kernels.dequantize import dequantize_grouped, dequantize_uniform
from spqfmt.schemes.floats import narrow, widen

OUTPUTS = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16}
SHAPES = [(1, 1), (3, 7), (5, 1025), (2, 3000), (70, 1000)]


@pytest.fixture(params=native.available_kernels(), autouse=True)
def kernels(request):
    with backend.use(request.param):
        yield


@pytest.fixture(params=OUTPUTS)
def out_dtype(request):
    return request.param


def bits_of(weights):
    return weights.view(np.uint32 if weights.dtype == np.float32 else np.uint16)


def rounded(weights, dtype):
    with np.errstate(over="ignore"):
        if dtype == "bf16":
            return torch.from_numpy(weights).to(torch.bfloat16).view(torch.uint16).numpy()
        return bits_of(weights.astype(OUTPUTS[dtype]))


def packed(codes, bits):
    per_byte = 8 // bits
    padded = np.zeros(-(-codes.size // per_byte) * per_byte, np.uint8)
    padded[: codes.size] = codes.astype(np.uint8) & ((1 << bits) - 1)
    lanes = padded.reshape(-1, per_byte).astype(np.uint16) << (np.arange(per_byte, dtype=np.uint16) * bits)
    return np.bitwise_or.reduce(lanes, axis=1).astype(np.uint8)


def draw(rng, shape, dtype, first):
    """Codes as a matrix, and packed behind `first` others."""
    bits, low = int(dtype[1:]), 0
    if dtype[0] == "i":
        low = -(1 << (bits - 1))
    codes = rng.integers(low, low + (1 << bits), shape)
    before = rng.integers(low, low + (1 << bits), first)
    return codes.astype(np.float32), packed(np.concatenate((before, codes.ravel())), bits)


def wide(rng, shape):
    """Floats over many powers of ten: results underflow and overflow the narrow types."""
    return (rng.normal(0, 1, shape) * 10.0 ** rng.uniform(-9, 5, shape)).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("code_dtype", ["i2", "i4", "i8", "u2", "u4", "u8"])
@pytest.mark.parametrize("with_columns", [False, True])
def test_uniform(shape, code_dtype, with_columns, out_dtype):
    rng = np.random.default_rng(shape[1])
    for first in (0, 1, 6):
        codes, stored = draw(rng, shape, code_dtype, first)
        row, column = wide(rng, shape[0]), rng.normal(0, 1, shape[1]).astype(np.float32)
        expected = codes * row[:, None]
        if with_columns:
            expected = expected * column
        out = np.empty(shape, OUTPUTS[out_dtype])
        dequantize_uniform(
            stored, code_dtype, row, column if with_columns else None, out, out_dtype, first=first
        )
        assert np.array_equal(bits_of(out), rounded(expected, out_dtype))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("group_size", [1, 3, 16, 128, 5000])
@pytest.mark.parametrize("code_dtype", ["i4", "u2", "u4", "u8"])
@pytest.mark.parametrize("offset", ["none", "zero_point", "minimum"])
def test_grouped(shape, group_size, code_dtype, offset, out_dtype):
    rng = np.random.default_rng(shape[1])
    codes, stored = draw(rng, shape, code_dtype, 3)
    groups = (shape[0], -(-shape[1] // group_size))
    scale, second = wide(rng, groups), rng.normal(0, 3, groups).astype(np.float32)
    s = np.repeat(scale, group_size, 1)[:, : shape[1]]
    o = np.repeat(second, group_size, 1)[:, : shape[1]]
    expected = {"none": s * codes, "zero_point": s * (codes - o), "minimum": s * codes - o}[offset]
    out = np.empty(shape, OUTPUTS[out_dtype])
    parameters = {} if offset == "none" else {offset: second}
    dequantize_grouped(stored, code_dtype, group_size, scale, out, out_dtype, first=3, **parameters)
    assert np.array_equal(bits_of(out), rounded(expected, out_dtype))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("code_dtype", ["u2", "u4", "u8"])
@pytest.mark.parametrize("offset", ["none", "zero_point", "minimum"])
def test_grouped_codes_that_are_numbers_of_values(shape, code_dtype, offset, out_dtype):
    rng = np.random.default_rng(shape[1])
    codes, stored = draw(rng, shape, code_dtype, 5)
    values = rng.normal(0, 2, 1 << int(code_dtype[1:])).astype(np.float32)
    values[0] = -0.0
    groups = (shape[0], -(-shape[1] // 7))
    scale, second = wide(rng, groups), rng.normal(0, 3, groups).astype(np.float32)
    s, o = (np.repeat(part, 7, 1)[:, : shape[1]] for part in (scale, second))
    known = values[codes.astype(int)]
    expected = {"none": s * known, "zero_point": s * (known - o), "minimum": s * known - o}[offset]
    out = np.empty(shape, OUTPUTS[out_dtype])
    parameters = {} if offset == "none" else {offset: second}
    dequantize_grouped(stored, code_dtype, 7, scale, out, out_dtype, first=5, values=values, **parameters)
    assert np.array_equal(bits_of(out), rounded(expected, out_dtype))


@pytest.mark.parametrize("columns", [2, 30, 64, 96, 1030])
@pytest.mark.parametrize("group_size", [32, 64, 96, 5000])
@pytest.mark.parametrize("form", ["i4", "u4", "values"])
@pytest.mark.parametrize("offset", ["none", "zero_point", "minimum"])
def test_rows_of_nibbles(columns, group_size, form, offset):
    rng = np.random.default_rng(columns)
    rows, first = 5, 2
    groups = (rows, -(-columns // group_size))
    scale, second = wide(rng, groups), rng.normal(0, 3, groups).astype(np.float32)
    scale[0, 0] = np.nan
    stored = rng.integers(0, 256, (first + rows * columns) // 2, np.uint8)
    nibbles = np.stack([stored & 15, stored >> 4], 1).reshape(-1)[first:].reshape(rows, columns)
    values = rng.normal(0, 1, 16).astype(np.float32) if form == "values" else None
    codes = nibbles.astype(np.float32) if values is None else values[nibbles]
    if form == "i4":
        codes = (codes + 8) % 16 - 8
    s, o = (np.repeat(numbers, group_size, 1)[:, :columns] for numbers in (scale, second))
    with np.errstate(all="ignore"):
        expected = {"none": s * codes, "zero_point": s * (codes - o), "minimum": s * codes - o}[offset]
    more = {} if offset == "none" else {offset: second}
    out = np.empty((rows, columns), np.uint16)
    dtype = "i4" if form == "i4" else "u4"
    dequantize_grouped(
        stored, dtype, group_size, scale, out, "bf16", values=values, first=first, n_threads=2, **more
    )
    nothing = np.isnan(expected)
    assert np.array_equal(out[~nothing], narrow(expected, "bf16")[~nothing])
    assert np.isnan(widen(out, "bf16")[nothing]).all()


def test_values_that_do_not_fit_their_codes():
    scale, out = np.ones((1, 1), np.float32), np.empty((1, 4), np.float32)
    for dtype, n in (("u4", 15), ("u4", 17), ("u2", 16), ("i4", 16)):
        with pytest.raises(ValueError, match=r"values|not float32"):
            dequantize_grouped(
                np.zeros(4, np.uint8), dtype, 4, scale, out, "f32", values=np.ones(n, np.float32)
            )


def test_rounding_of_all_exponents(out_dtype):
    """Every sign and exponent with the mantissas around each tie."""
    high = np.arange(1 << 20, dtype=np.uint32) << 12
    for low in (0, 1, 2048, 4095):
        values = (high + np.uint32(low)).view(np.float32)
        out = np.empty((1, values.size), OUTPUTS[out_dtype])
        dequantize_uniform(
            np.ones(values.size, np.uint8), "i8", np.ones(1, np.float32), values, out, out_dtype
        )
        nan = np.isnan(values)
        assert np.array_equal(bits_of(out[0])[~nan], rounded(values, out_dtype)[~nan])
        widened = out[0].astype(np.uint32) << 16 if out_dtype == "bf16" else None
        assert np.isnan(out[0] if widened is None else widened.view(np.float32))[nan].all()


def test_threads_do_not_matter(out_dtype):
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, 300 * 1000, dtype=np.uint8)
    row = wide(rng, 300)
    outs = [np.empty((300, 1000), OUTPUTS[out_dtype]) for _ in range(3)]
    for n_threads, out in enumerate(outs):
        dequantize_uniform(codes, "i8", row, None, out, out_dtype, n_threads=n_threads)
    assert np.array_equal(bits_of(outs[0]), bits_of(outs[1]))
    assert np.array_equal(bits_of(outs[1]), bits_of(outs[2]))


def test_arrays_must_fit_together():
    row, out = np.ones(2, np.float32), np.empty((2, 3), np.float32)
    dequantize_uniform(bytes(6), "i8", row, None, out, "f32")
    with pytest.raises(ValueError, match="fewer"):
        dequantize_uniform(bytes(5), "i8", row, None, out, "f32")
    with pytest.raises(ValueError, match="fewer"):
        dequantize_uniform(bytes(6), "i8", row, None, out, "f32", first=1)
    with pytest.raises(ValueError, match="float32"):
        dequantize_uniform(bytes(6), "i8", np.ones(3, np.float32), None, out, "f32")
    with pytest.raises(ValueError, match="carried"):
        dequantize_uniform(bytes(6), "i8", row, None, out, "bf16")
    scale = np.ones((2, 2), np.float32)
    dequantize_grouped(bytes(6), "u8", 2, scale, out, "f32")
    with pytest.raises(ValueError, match="exclude"):
        dequantize_grouped(bytes(6), "u8", 2, scale, out, "f32", zero_point=scale, minimum=scale)
    with pytest.raises(ValueError, match="group_size"):
        dequantize_grouped(bytes(6), "u8", 0, scale, out, "f32")
    with pytest.raises(ValueError, match="float32"):
        dequantize_grouped(bytes(6), "u8", 3, scale, out, "f32")
