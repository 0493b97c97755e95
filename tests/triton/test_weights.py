"""Dequantizing and multiplying on a device: weights bit for bit what the native kernels give."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spqfmt.kernels.dequantize import dequantize_grouped, dequantize_uniform
from spqfmt.kernels.device.matrix import DeviceGroupValues, DeviceOutliers, GroupScales, Matrix, UniformScales

CODES = ["i2", "i4", "i8", "u2", "u4", "u8"]
FLOATS = {
    "f32": (torch.float32, np.float32),
    "bf16": (torch.bfloat16, np.uint16),
    "f16": (torch.float16, np.float16),
}


def packed(codes, bits):
    per_byte = 8 // bits
    padded = np.zeros(-(-codes.size // per_byte) * per_byte, np.uint8)
    padded[: codes.size] = codes.ravel().astype(np.uint8) & ((1 << bits) - 1)
    lanes = padded.reshape(-1, per_byte).astype(np.uint16) << (np.arange(per_byte, dtype=np.uint16) * bits)
    return np.bitwise_or.reduce(lanes, axis=1).astype(np.uint8)


def wide(rng, shape):
    """Floats over many powers of ten: weights underflow and overflow the narrow types."""
    return (rng.normal(0, 1, shape) * 10.0 ** rng.uniform(-9, 5, shape)).astype(np.float32)


class Case:
    """A matrix of random codes and scales, on the device's side and as the native kernels take it."""

    def __init__(
        self, seed, shape, code_dtype, group_size=None, offset=None, *, column=False, n_outliers=0, scale=wide
    ):
        rng = np.random.default_rng(seed)
        bits, signed = int(code_dtype[1:]), code_dtype[0] == "i"
        low = -(1 << (bits - 1)) if signed else 0
        self.codes = rng.integers(low, low + (1 << bits), shape)
        self.shape, self.code_dtype, self.bits = shape, code_dtype, bits
        self.packed = torch.from_numpy(packed(self.codes, bits))
        self.group_size, self.offset = group_size, offset
        rows, columns = shape
        if group_size is None:
            self.row, self.column = scale(rng, rows), scale(rng, columns) if column else None
            scales = UniformScales(
                self.tensor(self.row), None if self.column is None else self.tensor(self.column)
            )
        else:
            groups = rows, -(-columns // group_size)
            self.scale = scale(rng, groups)
            self.values = None if offset is None else rng.uniform(0, 15, groups).astype(np.float32)
            given = {} if offset is None else {offset: DeviceGroupValues(self.tensor(self.values))}
            scales = GroupScales(group_size, DeviceGroupValues(self.tensor(self.scale)), **given)
        outliers = None
        if n_outliers:
            at = np.sort(rng.choice(rows * columns, n_outliers, replace=False))
            self.at = np.divmod(at, columns)
            self.replacing = scale(rng, n_outliers)
            begin = np.searchsorted(self.at[0], np.arange(rows + 1)).astype(np.int32)
            outliers = DeviceOutliers(
                self.tensor(begin), self.tensor(self.at[1].astype(np.int32)), self.tensor(self.replacing)
            )
        self.matrix = Matrix(shape, code_dtype, scales, outliers)

    @staticmethod
    def tensor(array):
        return torch.from_numpy(np.ascontiguousarray(array))

    def natively(self, dtype):
        out = np.empty(self.shape, FLOATS[dtype][1])
        if self.group_size is None:
            dequantize_uniform(self.packed.numpy(), self.code_dtype, self.row, self.column, out, dtype)
        else:
            dequantize_grouped(
                self.packed.numpy(),
                self.code_dtype,
                self.group_size,
                self.scale,
                out,
                dtype,
                **({} if self.offset is None else {self.offset: self.values}),
            )
        weights = torch.from_numpy(out).view(FLOATS[dtype][0])
        if self.matrix.outliers is not None:
            weights[self.at] = torch.from_numpy(self.replacing).to(weights.dtype)
        return weights


def same(found, expected):
    integers = {4: torch.int32, 2: torch.int16}[found.element_size()]
    either_nan = torch.isnan(found) & torch.isnan(expected)
    return torch.equal(found.view(integers)[~either_nan], expected.view(integers)[~either_nan])


def empty(shape, dtype):
    return torch.full(shape, -1.0, dtype=FLOATS[dtype][0])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("code_dtype", CODES)
def test_weights_of_uniform_codes(kernels, code_dtype, dtype):
    case = Case(1, (5, 1027), code_dtype, column=dtype != "f16", n_outliers=40)
    out = empty(case.shape, dtype)
    kernels.dequantize(case.packed, case.matrix, range(5), out)
    assert same(out, case.natively(dtype))


@pytest.mark.parametrize(
    ("code_dtype", "offset"), list(product(["u2", "i4", "u4", "u8"], [None, "zero_point", "minimum"]))
)
def test_weights_of_grouped_codes(kernels, code_dtype, offset):
    for group_size, dtype in ((1, "f32"), (16, "bf16"), (5000, "f16")):
        case = Case(2, (3, 1025), code_dtype, group_size, offset, n_outliers=group_size % 7)
        out = empty(case.shape, dtype)
        kernels.dequantize(case.packed, case.matrix, range(3), out)
        assert same(out, case.natively(dtype))


@settings(max_examples=12)
@given(data=st.data())
def test_weights_of_any_shape(kernels, data):
    shape = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 300))
    group_size = data.draw(st.sampled_from([None, 1, 7, 64]))
    offset = None if group_size is None else data.draw(st.sampled_from([None, "zero_point", "minimum"]))
    n_outliers = data.draw(st.integers(0, min(9, shape[0] * shape[1])))
    code_dtype = data.draw(st.sampled_from(CODES if group_size else CODES[:3]))
    case = Case(data.draw(st.integers(0, 99)), shape, code_dtype, group_size, offset, n_outliers=n_outliers)
    first, stop = sorted(data.draw(st.tuples(st.integers(0, shape[0]), st.integers(0, shape[0]))))
    dtype = data.draw(st.sampled_from(sorted(FLOATS)))
    out = empty((stop - first, shape[1]), dtype)
    kernels.dequantize(case.packed, case.matrix, range(first, stop), out, first=first * shape[1])
    assert same(out, case.natively(dtype)[first:stop])


def test_a_row_of_32769_columns(kernels):
    case = Case(3, (1, 32_769), "u4", 128, "zero_point", n_outliers=300)
    out = empty(case.shape, "bf16")
    kernels.dequantize(case.packed, case.matrix, range(1), out)
    assert same(out, case.natively("bf16"))


def test_ties_go_to_even_and_nan_stays_nan(kernels):
    # 1 + 2^-8 lies between two bfloat16, 1 + 3 * 2^-8 between the next two; then the largest, infinity and NaN
    bits = np.array(
        [0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF, 0x7F800000, 0x7FFFFFFF, 0x00000001], np.uint32
    )
    scales = UniformScales(torch.from_numpy(bits.view(np.float32)))
    out = empty((7, 1), "bf16")
    kernels.dequantize(torch.ones(7, dtype=torch.uint8), Matrix((7, 1), "i8", scales), range(7), out)
    assert [v & 0xFFFF for v in out.view(torch.int16).flatten().tolist()][:5] == [
        0x3F80,
        0x3F82,
        0x3F81,
        0x7F80,
        0x7F80,
    ]
    assert torch.isnan(out[5])
    assert out[6] == 0


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("group_size", [None, 8])
def test_codes_stored_by_columns(kernels, group_size, ordered):
    case = Case(4, (70, 45), "i8", group_size, column=True, n_outliers=30)
    rng = np.random.default_rng(4)
    order = rng.permutation(45) if ordered else np.arange(45)
    places = np.argsort(order)
    ways = [torch.from_numpy(a.astype(np.int32)) for a in (order, places)] if ordered else [None, None]
    matrix = Matrix(case.shape, "i8", case.matrix.scales, case.matrix.outliers, True, *ways)
    stored = torch.from_numpy(packed(np.ascontiguousarray(case.codes.T[order]), 8))
    for channels in (range(45), range(5, 38)):
        out = empty((70, len(channels)), "bf16")
        kernels.dequantize(stored, matrix, channels, out, first=70 * channels.start)
        assert same(out, case.natively("bf16")[:, order[channels.start : channels.stop]])


def test_a_permutation_puts_columns_back(kernels):
    case = Case(5, (4, 130), "u4", 32, "zero_point", n_outliers=20)
    permutation = np.random.default_rng(5).permutation(130)
    matrix = Matrix(
        case.shape,
        "u4",
        case.matrix.scales,
        case.matrix.outliers,
        permutation=torch.from_numpy(permutation.astype(np.int32)),
    )
    out = empty(case.shape, "f32")
    kernels.dequantize(case.packed, matrix, range(4), out)
    assert same(out[:, permutation], case.natively("f32"))


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("codes", [torch.uint8, torch.int8])
def test_values_of_supergroups(kernels, codes, zeros):
    rng = np.random.default_rng(6)
    shape, tile = (11, 96), (4, 2)
    values = rng.integers(0, 8, (11, 6)).astype(np.uint8)
    steps, zero = (rng.normal(0, 1, (3, 3)).astype(np.float16) for _ in range(2))

    def spread(a):
        return a.astype(np.float32).repeat(4, 0)[:11].repeat(2, 1)[:, :6]

    scale = spread(steps) * (values.astype(np.float32) - (spread(zero) if zeros else 0))
    level2 = DeviceGroupValues(
        torch.from_numpy(values).to(codes),
        torch.from_numpy(steps),
        torch.from_numpy(zero) if zeros else None,
        tile,
    )
    direct = DeviceGroupValues(
        torch.from_numpy(rng.normal(0, 1, (11, 6)).astype(np.float32)).to(torch.bfloat16)
    )
    code = rng.integers(0, 4, shape)
    out, expected = empty((6, 96), "f32"), np.empty(shape, np.float32)
    stored = packed(code, 2)
    dequantize_grouped(stored, "u2", 16, scale, expected, "f32", minimum=direct.values.float().numpy())
    matrix = Matrix(shape, "u2", GroupScales(16, level2, minimum=direct))
    kernels.dequantize(torch.from_numpy(stored), matrix, range(5, 11), out, first=5 * 96)
    assert same(out, torch.from_numpy(expected[5:]))


def normal(rng, shape):
    return rng.normal(0, 1, shape).astype(np.float32)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n_tokens", [1, 2, 16])
@pytest.mark.parametrize("group_size", [None, 16])
def test_products_from_codes(kernels, group_size, n_tokens, dtype):
    case = Case(
        9,
        (37, 200),
        "u4" if group_size else "i8",
        group_size,
        group_size and "zero_point",
        n_outliers=30,
        scale=normal,
    )
    x = torch.from_numpy(normal(np.random.default_rng(n_tokens), (n_tokens, 200))).to(FLOATS[dtype][0])
    y = torch.full((n_tokens, 37), 7.0)
    kernels.multiply(x, case.packed, case.matrix, range(3, 37), y, first=3 * 200)
    weights = case.natively("f32" if n_tokens == 1 else dtype).double()
    expected = x.double() @ weights.t()
    assert torch.equal(y[:, :3], torch.full((n_tokens, 3), 7.0))
    torch.testing.assert_close(
        y[:, 3:].double(), expected[:, 3:], rtol=1e-5, atol=1e-5 * float(expected.abs().max())
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_planes_are_merged(kernels, dtype):
    from spqfmt.kernels import native

    size = dtype.itemsize
    raw = np.random.default_rng(size).integers(0, 256, 1025 * size, np.uint8)
    for rotated in (False, True):
        planes = np.empty_like(raw)
        native.split_planes(raw, size, rotated, planes)
        out = torch.zeros(1025, dtype=dtype)
        kernels.merge_planes(torch.from_numpy(planes).view(size, 1025), out, rotated=rotated)
        assert bytes(out.view(torch.uint8).numpy()) == raw.tobytes()


def test_arrays_that_do_not_fit_are_refused(kernels):
    case = Case(1, (4, 8), "i8")
    x, y = torch.zeros(1, 8), torch.zeros(1, 4)
    for call in (
        lambda: kernels.dequantize(case.packed, case.matrix, range(4), empty((3, 8), "f32")),
        lambda: kernels.dequantize(
            case.packed, case.matrix, range(4), torch.zeros(4, 8, dtype=torch.float64)
        ),
        lambda: kernels.dequantize(case.packed, case.matrix, range(3, 5), empty((2, 8), "f32")),
        lambda: kernels.dequantize(case.packed, case.matrix, range(4), empty((4, 8), "f32"), first=1),
        lambda: kernels.multiply(torch.zeros(17, 8), case.packed, case.matrix, range(4), torch.zeros(17, 4)),
        lambda: kernels.multiply(x[:, :7].contiguous(), case.packed, case.matrix, range(4), y),
        lambda: kernels.multiply(x, case.packed, case.matrix, range(4), y.double()),
        lambda: kernels.multiply(x, case.packed, case.matrix, range(4), torch.zeros(1, 5)),
        lambda: kernels.merge_planes(torch.zeros(2, 3, dtype=torch.uint8), torch.zeros(3), rotated=True),
        lambda: kernels.merge_planes(torch.zeros(3, 3, dtype=torch.uint8), torch.zeros(3), rotated=True),
    ):
        with pytest.raises(ValueError, match=r"\w"):
            call()


def test_matrices_that_make_no_sense_are_refused():
    case = Case(1, (4, 8), "u4", 4, "minimum")
    [order] = [torch.arange(8, dtype=torch.int32)]
    scale = case.matrix.scales.scale
    for make in (
        lambda: Matrix((4, 8), "u4", case.matrix.scales, by_columns=True, permutation=order),
        lambda: Matrix((4, 8), "u4", case.matrix.scales, order=order, places=order),
        lambda: Matrix((4, 8), "u4", case.matrix.scales, by_columns=True, order=order),
        lambda: GroupScales(4, scale, scale, scale),
        lambda: GroupScales(
            4,
            DeviceGroupValues(scale.values, scale.values, None, (2, 1)),
            DeviceGroupValues(scale.values, scale.values, None, (1, 2)),
        ),
    ):
        with pytest.raises(ValueError, match=r"\w"):
            make()


@pytest.mark.parametrize("n_outliers", [0, 30])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("group_size", [None, 16])
def test_prepared_products_are_those_of_multiply_rounded_once(kernels, group_size, dtype, n_outliers):
    shape, torch_dtype = (11, 300), FLOATS[dtype][0]
    offset = None if group_size is None else "zero_point"
    case = Case(5, shape, "i8", group_size, offset, n_outliers=n_outliers, scale=tame)
    bias = torch.linspace(-2, 2, shape[0]).to(torch_dtype)
    for n, added in ((1, None), (1, bias), (5, bias)):
        x = torch.randn(n, shape[1], generator=torch.Generator().manual_seed(n)).to(torch_dtype)
        sums = torch.empty(n, shape[0])
        kernels.multiply(x, case.packed, case.matrix, range(shape[0]), sums)
        expected = (sums if added is None else sums + added).to(torch_dtype)
        y = torch.full((n, shape[0]), 7.0, dtype=torch_dtype)
        # torch adds up in another order where there are less rows
        for rows in (range(11),) if kernels.name == "torch" else (range(6), range(6, 11)):
            product = kernels.prepare_product(case.matrix, rows, torch_dtype, added, is_one=n == 1)
            for _ in range(2):
                product(x, case.packed[rows.start * shape[1] :].clone(), y, n)
        assert same(y, expected)


@pytest.mark.parametrize("n_outliers", [0, 40])
@pytest.mark.parametrize("dtype", FLOATS)
def test_rows_by_number_are_those_of_the_matrix_and_nan_where_there_is_none(kernels, dtype, n_outliers):
    case = Case(6, (9, 130), "u4", 32, "minimum", n_outliers=n_outliers)
    ids = torch.tensor([8, 0, 3, 3, 9, -1, 1 << 40])
    out = empty((len(ids), 130), dtype)
    rows = kernels.prepare_rows(case.matrix, range(9), FLOATS[dtype][0])
    rows(case.packed, ids, out, len(ids))
    assert same(out[:4], case.natively(dtype)[ids[:4]])
    assert out[4:].isnan().all()


def tame(rng, shape):
    """Scales of weights that do not overflow."""
    return rng.uniform(0.001, 0.1, shape).astype(np.float32)
