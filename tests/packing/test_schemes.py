"""Every option of every scheme: what a method hands over is what a reader gets, to the bit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import spqfmt
from spqfmt.codecs.chunks import CodecPolicy
from spqfmt.importers.base import SourceModel, SourceTensor
from spqfmt.packing.options import PackOptions
from spqfmt.packing.pack import pack_model
from spqfmt.progress import Silent
from spqfmt.quantize.base import MethodOptions, Weight
from spqfmt.schemes.base import Quantized
from spqfmt.schemes.codes import Layout
from spqfmt.schemes.floats import Scale, log8_values, narrow, to_log8
from spqfmt.schemes.group_numbers import GroupValues
from spqfmt.schemes.grouped import Grouped
from spqfmt.schemes.outliers import Outliers
from spqfmt.schemes.uniform import Uniform

CODE_RANGES = {
    "i2": (-2, 1), "i4": (-8, 7), "i8": (-128, 127), "u2": (0, 3), "u4": (0, 15), "u8": (0, 255),
}  # fmt: skip


class Given:
    """A method that hands over what a test made."""

    name = "given"

    def __init__(self, made: dict[str, Quantized]) -> None:
        self._made = made

    def check(self, options: MethodOptions) -> MethodOptions:
        return options

    def describe(self, weight: Weight, options: MethodOptions) -> str:
        return "as given"

    def quantize(self, weight: Weight, value: torch.Tensor, options: MethodOptions) -> Quantized:
        return self._made[weight.name]


def store(made: dict[str, Any], out: Path, *, dtype: str = "f32", transposed: bool = False) -> None:
    """Pack the tensors that `made` describes."""
    tensors = []
    for name, quantized in made.items():
        shape = quantized.codes.shape
        shape = tuple(reversed(shape)) if transposed else shape
        tensors.append(
            SourceTensor(name, shape, dtype, "layer", "linear", transposed, None, lambda: torch.zeros(1))
        )
    options = PackOptions(Given(made), MethodOptions(), CodecPolicy(), None)
    pack_model(SourceModel(tuple(tensors), (), "", ""), out, options, force=True, progress=Silent())
    spqfmt.verify(out)


def codes(rng: np.random.Generator, dtype: str, rows: int, columns: int) -> Any:
    low, high = CODE_RANGES[dtype]
    carrier = np.int8 if dtype.startswith("i") else np.uint8
    spread = rng.normal((low + high) / 2, max(1, (high - low) / 8), (rows, columns))
    return np.clip(np.rint(spread), low, high).astype(carrier)


def outliers(rng: np.random.Generator, shape: tuple[int, int], n: int, dtype: str) -> Outliers:
    n = min(n, shape[0] * shape[1])
    places = np.sort(rng.choice(shape[0] * shape[1], n, replace=False)).astype(np.int64)
    rows, columns = np.divmod(places, shape[1])
    return Outliers(rows, columns, narrow(rng.normal(0, 9, n).astype(np.float32), dtype), dtype)


def layout(rng: np.random.Generator, shape: tuple[int, int], kind: str) -> Layout:
    orientation = "columns" if "columns" in kind else "rows"
    n = shape[0 if orientation == "rows" else 1]
    order = rng.permutation(n) if "order" in kind else None
    sizes = None
    if "classes" in kind:
        # An even number of channels in each class, so that packed codes end at whole bytes whatever the width.
        cut = 4 * int(rng.integers(0, n // 4 + 1))
        sizes = tuple(size for size in (cut, n - cut) if size)
    return Layout(orientation, order, sizes)


def restored(path: Path, name: str = "w") -> Any:
    with spqfmt.open(path) as file:
        return file.read(name)


LAYOUTS = ["rows", "columns", "rows order", "columns order classes", "rows classes"]
SCALES = [None, "f32", "f16", "bf16", "log8"]


@pytest.mark.every_backend
@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("code_dtype", ["i2", "i4", "i8"])
@pytest.mark.parametrize(("row_scale", "column_scale"), list(zip(SCALES, SCALES[::-1], strict=True)))
def test_uniform(
    tmp_path: Path, kind: str, code_dtype: str, row_scale: str | None, column_scale: str | None
) -> None:
    rng = np.random.default_rng(0)
    shape = (45, 67)

    def scale(n: int, dtype: str | None, octave_steps: int) -> Scale | None:
        if dtype is None:
            return None
        values = np.exp(rng.normal(0, 1, n)).astype(np.float32)
        if dtype == "log8":
            return to_log8(values, octave_steps)
        return Scale(narrow(values, dtype), dtype)

    made = Uniform(
        codes(rng, code_dtype, *shape),
        np.float32(0.0123),
        code_dtype,
        scale(shape[0], row_scale, 8),
        scale(shape[1], column_scale, 16),
        outliers(rng, shape, 30, "f32"),
        layout(rng, shape, kind),
    )
    store({"w": made}, tmp_path / "m.spq")
    assert np.array_equal(restored(tmp_path / "m.spq").numpy(), made.dequantize())
    with spqfmt.open(tmp_path / "m.spq") as file:
        assert np.array_equal(file.read("w", slice(7, 31)).numpy(), made.dequantize()[7:31])
        assert file["w"].info.outliers == 30


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("code_dtype", ["u2", "u4", "u8", "i4"])
@pytest.mark.parametrize("zero", ["none", "float", "integer", "minimum"])
@pytest.mark.parametrize("supergroup", [None, (16, 1), (1, 8), (1000, 1000)])
def test_grouped(
    tmp_path: Path, kind: str, code_dtype: str, zero: str, supergroup: tuple[int, int] | None
) -> None:
    rng = np.random.default_rng(1)
    rows, columns, group_size = 37, 70, 16
    groups = -(-columns // group_size)

    def values(positive: bool) -> GroupValues:
        if supergroup is None:
            floats = rng.normal(0, 1, (rows, groups)).astype(np.float32)
            return GroupValues(narrow(abs(floats) if positive else floats, "bf16"), "bf16")
        tiles = -(-rows // supergroup[0]), -(-groups // supergroup[1])
        level2 = rng.integers(0, 8, (rows, groups)).astype(np.uint8)
        steps, zeros = (rng.random(tiles).astype(np.float16) for _ in range(2))
        return GroupValues(level2, "u4", steps, zeros if positive else None, "f16")

    zero_point = minimum = None
    if zero == "float":
        zero_point = values(False)
    elif zero == "minimum":
        minimum = values(False)
    elif zero == "integer":
        zero_point = GroupValues(rng.integers(0, 4, (rows, groups)).astype(np.uint8), "u2")
    made = Grouped(
        codes(rng, code_dtype, rows, columns),
        code_dtype,
        group_size,
        3,
        values(True),
        zero_point,
        minimum,
        supergroup,
        rng.permutation(columns),
        outliers(rng, (rows, columns), 25, "f16"),
        layout(rng, (rows, columns), kind),
    )
    store({"w": made}, tmp_path / "m.spq")
    assert np.array_equal(restored(tmp_path / "m.spq").numpy(), made.dequantize())
    with spqfmt.open(tmp_path / "m.spq") as file:
        assert np.array_equal(file.read("w", slice(17, 36)).numpy(), made.dequantize()[17:36])


def test_column_scales_are_stored_once_for_tensors_with_one_input(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    scale = to_log8(np.exp(rng.normal(0, 1, 4096)).astype(np.float32), 16)
    first = Uniform(codes(rng, "i8", 8, 4096), np.float32(1), column_scale=scale)
    second = Uniform(codes(rng, "i8", 8, 4096), np.float32(2), column_scale=scale, shared_column_scales="a")
    store({"a": first, "b": second}, tmp_path / "m.spq")
    for name, made in (("a", first), ("b", second)):
        assert np.array_equal(restored(tmp_path / "m.spq", name).numpy(), made.dequantize())
    shared = spqfmt.inspect(tmp_path / "m.spq").tensors[1].streams[-1]
    assert (shared.role, shared.stored_bytes, shared.codec) == ("column_scales", 0, "shared")


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f64"])
def test_transposed_and_rounded_to_the_tensors_dtype(tmp_path: Path, dtype: str) -> None:
    rng = np.random.default_rng(3)
    made = Uniform(codes(rng, "i8", 30, 50), np.float32(0.01))
    store({"w": made}, tmp_path / "m.spq", dtype=dtype, transposed=True)
    torch_dtype = {"f16": torch.float16, "bf16": torch.bfloat16, "f64": torch.float64}[dtype]
    expected = torch.from_numpy(made.dequantize()).t().to(torch_dtype)
    value = restored(tmp_path / "m.spq")
    assert value.dtype == torch_dtype
    assert torch.equal(value, expected)


@pytest.mark.every_backend
def test_bands_of_outliers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many bands, some of them empty, and gaps longer than several escapes."""
    monkeypatch.setattr("spqfmt.schemes.outliers.BAND_WEIGHTS", 1000)
    rng = np.random.default_rng(4)
    places = np.array([0, 1, 254, 255, 256, 999, 5000, 5001, 19_999])
    rows, columns = np.divmod(places, 200)
    values = rng.normal(0, 1, places.size).astype(np.float32)
    made = Uniform(
        codes(rng, "i4", 100, 200),
        np.float32(1),
        "i4",
        outliers=Outliers(rows, columns, values, "f32"),
    )
    store({"w": made}, tmp_path / "m.spq")
    assert np.array_equal(restored(tmp_path / "m.spq").numpy(), made.dequantize())
    with spqfmt.open(tmp_path / "m.spq") as file:
        for first in range(0, 100, 9):
            rows_read = file.read("w", slice(first, first + 9)).numpy()
            assert np.array_equal(rows_read, made.dequantize()[first : first + 9])


@pytest.mark.parametrize("share", [0.0005, 0.002, 0.01, 0.05])
def test_places_of_outliers_cost_little_more_than_their_entropy(tmp_path: Path, share: float) -> None:
    """Independent places: n positions of N cost log2(N choose n) bits, N h(n / N) of them."""
    rng = np.random.default_rng(5)
    shape = (2048, 2048)
    total = shape[0] * shape[1]
    n = int(total * share)
    made = Uniform(np.zeros(shape, np.int8), np.float32(1), outliers=outliers(rng, shape, n, "f16"))
    store({"w": made}, tmp_path / "m.spq")
    [gaps] = [
        stream
        for stream in spqfmt.inspect(tmp_path / "m.spq").tensors[0].streams
        if stream.role == "outlier_gaps"
    ]
    entropy = -total * (share * np.log2(share) + (1 - share) * np.log2(1 - share))
    assert 0.98 < 8 * gaps.stored_bytes / entropy < 1.10


@given(st.integers(-1024, 1024), st.sampled_from([8, 16]))
def test_log8_is_within_a_rounding_of_its_formula(bias: int, octave_steps: int) -> None:
    exact = np.exp2((np.arange(256) + bias) / octave_steps)
    values = log8_values(octave_steps, bias)
    normal = (exact >= 2.0**-126) & (exact < 2.0**128)
    assert np.array_equal(np.isnan(values), ~normal)
    assert np.allclose(values[normal], exact[normal], rtol=1e-7, atol=0)


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=50))
def test_narrow_rounds_as_torch_does(values: list[float]) -> None:
    array = np.array(values, np.float32)
    for dtype, torch_dtype in (("bf16", torch.bfloat16), ("f16", torch.float16)):
        expected = torch.from_numpy(array).to(torch_dtype)
        ours = narrow(array, dtype)
        assert np.array_equal(ours.view(np.uint16), expected.view(torch.uint16).numpy())


def test_a_dequantized_nan_stays_one() -> None:
    bits = narrow(np.array([np.nan], np.float32), "bf16")
    assert torch.from_numpy(bits).view(torch.bfloat16).isnan().all()


def test_a_log8_scale_saturates_below() -> None:
    scale = to_log8(np.array([1.0, 2.0**-40], np.float32), 16)
    assert scale.to_float32()[0] == 1.0
    assert scale.to_float32()[1] == pytest.approx(2.0 ** (-255 / 16), rel=1e-6)
