"""Weights of any magnitude come back as well as those around 1, by every method, or are refused."""

from typing import Any

import numpy as np
import pytest
import torch

from spqfmt.errors import EncodeError
from spqfmt.kernels.torch_arrays import TORCH_DTYPES
from spqfmt.quantize.base import MethodOptions, Weight, as_matrix
from spqfmt.quantize.calibrated import Block, Layer, Result, Site, is_calibrated, simulate
from spqfmt.quantize.inputs import InputStatistics
from spqfmt.quantize.pruning import prune
from spqfmt.quantize.registry import METHODS
from spqfmt.quantize.rtn import round_groups
from spqfmt.quantize.statistics import ColumnStatistics, Hessian
from spqfmt.schemes.base import Quantized
from spqfmt.schemes.grouped import Grouped
from spqfmt.schemes.uniform import Uniform

ROWS, COLUMNS = 48, 64
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "rtn": [
        {"bits": 4, "group_size": 16},
        {"bits": 8, "group_size": 32},
        {"bits": 2, "group_size": 7},
        {"granularity": "tensor"},
        {"bits": 3},
    ],
    "gptq": [{"bits": 3, "group_size": 16}, {"bits": 8, "group_size": 24, "act_order": False}],
    "spqr": [{"bits": 3}, {"bits": 3, "threshold": float("inf")}, {"bits": 2, "group_size": 8}],
    "zeroquant": [{"group_size": 16, "bits": 5}],
    "ecq": [{"no_calibration": True}, {"bits_per_weight": 7.5}],
    "dc": [{"scaling": "smoothquant", "sparsity": 0.3}],
    "smoothquant": [{"pruning": "sparsegpt", "sparsity": 0.5}, {"granularity": "tensor"}],
    "jsq": [{"search_steps": 0, "pattern": "2:4"}],
    "llm_int8": [{"threshold": 3.0}],
}
CASES = [(name, options) for name in METHODS for options in ({}, *VARIANTS.get(name, []))]
PER_ROW = [
    (name, {**options, "sparsity": 0.0, "pruning": "none"} if "sparsity" in METHODS[name].takes else options)
    for name, options in CASES
    if "pruning" not in options
    and "pattern" not in options
    and not (
        options.get("granularity") == "tensor"
        or name == "dc"
        or (name == "ecq" and not options.get("no_calibration"))
    )
]
"""Cases whose steps are of a row or less."""
PER_TENSOR = [("rtn", {"granularity": "tensor"}), ("dc", {}), ("ecq", {}), ("ecq", {"bits_per_weight": 7.5})]
"""Cases with one step for all rows: a row is as far off as the tensor's step says, however small it is."""


def method_of(name: str, options: dict[str, Any]) -> tuple[Any, MethodOptions]:
    asked = MethodOptions(**options)
    method: Any = METHODS[name]
    method = method.grade(asked) if hasattr(method, "grade") else method
    return method, method.check(asked)


def result_of(
    name: str, options: dict[str, Any], value: torch.Tensor, dtype: str, exponent: int = 0
) -> Result:
    """What the method makes of a layer whose inputs are uneven and correlated, times 2^exponent."""
    method, checked = method_of(name, options)
    weight = Weight("layer.weight", tuple(value.shape), dtype, "linear")
    if not is_calibrated(method):
        return Result(method.quantize(weight, value, checked))
    generator = torch.Generator().manual_seed(5)
    columns = value.shape[1]
    mix = torch.eye(columns) + torch.randn(columns, columns, generator=generator) * 0.3
    inputs = torch.randn(2, 96, columns, generator=generator) @ mix * torch.linspace(0.1, 2, columns)
    inputs = scaled(inputs, exponent)
    statistics = method.accumulator(columns, checked)
    statistics.add(inputs)
    layer = Layer(weight, "layer", lambda: as_matrix(weight, value).clone())
    site = Site((layer,), statistics, lambda: iter([inputs]))
    block = Block("block", (site,), torch.nn.Module(), {}, lambda: inputs)
    result: Result = method.quantize_block(block, checked)["layer.weight"]
    return result


def quantized(
    name: str, options: dict[str, Any], value: torch.Tensor, dtype: str, exponent: int = 0
) -> Quantized:
    """The tensor of `result_of`."""
    return result_of(name, options, value, dtype, exponent).quantized


def errors(name: str, options: dict[str, Any], value: torch.Tensor, dtype: str) -> torch.Tensor:
    """By row, the error of what a reader restores over the row's norm; float64 [rows]."""
    restored = simulate(quantized(name, options, value, dtype)).to(TORCH_DTYPES[dtype])
    assert torch.isfinite(restored).all()
    found: torch.Tensor = (restored.double() - value.double()).norm(dim=1) / value.double().norm(dim=1)
    return found


def weights(seed: int = 0, rows: int = ROWS, columns: int = COLUMNS) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def scaled(values: torch.Tensor, exponents: Any) -> torch.Tensor:
    """Times powers of two, exactly (torch.ldexp overflows)."""
    return torch.from_numpy(np.ldexp(values.numpy(), exponents))


def check(made: torch.Tensor, expected: torch.Tensor, more: torch.Tensor | float = 0.002) -> None:
    """No row is much worse, and rows as a whole are not: with feedback one rounding is another row's others."""
    assert (made <= 1.7 * expected + more).all()
    assert made.mean() <= 1.05 * expected.mean() + torch.as_tensor(more).mean()


@pytest.mark.parametrize("exponent", [-100, -40, -17, 30, 100])
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_a_tensor_of_any_magnitude_is_as_good_as_one_around_1(
    name: str, options: dict[str, Any], exponent: int
) -> None:
    dtype = "f32" if exponent == -40 else "bf16"
    value = weights().to(TORCH_DTYPES[dtype]).float()
    expected = errors(name, options, value.to(TORCH_DTYPES[dtype]), dtype)
    made = errors(name, options, scaled(value, exponent).to(TORCH_DTYPES[dtype]), dtype)
    check(made, expected)


CALIBRATED = [(name, options) for name, options in CASES if is_calibrated(method_of(name, options)[0])]


def assert_alike(first: Quantized, second: Quantized) -> None:
    """All that would be stored is the same."""
    made, expected = first.encode(), second.encode()
    assert made.parameters == expected.parameters
    for stream, other in zip(made.streams, expected.streams, strict=True):
        assert (stream.role, stream.dtype) == (other.role, other.dtype)
        np.testing.assert_array_equal(stream.elements, other.elements)


@pytest.mark.parametrize("exponent", [-100, -80, -18, 21, 70, 80, 100, 120])
@pytest.mark.parametrize(("name", "options"), CALIBRATED, ids=str)
def test_inputs_of_any_magnitude_say_the_same(name: str, options: dict[str, Any], exponent: int) -> None:
    if name == "llm_int8":
        # Its threshold is a number of its own: columns with larger inputs are kept.
        made = quantized(name, options, weights(), "f32", exponent)
        assert isinstance(made, Uniform)
        assert (made.outliers is None) == (exponent < 0)
        if exponent > 0:
            np.testing.assert_array_equal(made.dequantize(), weights().numpy())
        return
    assert_alike(
        quantized(name, options, weights(), "f32", exponent), quantized(name, options, weights(), "f32")
    )


@pytest.mark.parametrize("exponent", [-20, -14, 12])
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_a_float16_tensor_of_any_magnitude_too(name: str, options: dict[str, Any], exponent: int) -> None:
    value = scaled(weights(), exponent).half()
    expected = errors(name, options, scaled(value.float(), -exponent), "f32")
    # What is restored is rounded to float16 once more.
    rounding = 2.0**-25 / (value.float().square().mean(1).sqrt().double()) + 2.0**-11
    check(errors(name, options, value, "f16"), expected, rounding)


MIXES = {
    "wide": lambda g: torch.randint(-95, 96, (ROWS, 1), generator=g),
    "two kinds": lambda g: torch.where(torch.rand(ROWS, 1, generator=g) < 0.5, 0, -10),
    "narrow": lambda g: torch.randint(-9, 1, (ROWS, 1), generator=g),
    "one small": lambda g: torch.where(torch.arange(ROWS)[:, None] == 21, -60, 0),
    "one large": lambda g: torch.where(torch.arange(ROWS)[:, None] == 21, 60, 0),
    "subnormal": lambda g: torch.where(torch.rand(ROWS, 1, generator=g) < 0.2, -138, -3),
}


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize(("name", "options"), PER_ROW, ids=str)
def test_rows_of_different_magnitude_do_not_lose_each_other(
    name: str, options: dict[str, Any], mix: str
) -> None:
    exponents = MIXES[mix](torch.Generator().manual_seed(1))
    expected = errors(name, options, weights(), "f32")
    value = scaled(weights(), exponents.int().numpy())
    made = errors(name, options, value, "f32")
    if name == "spqr":
        # It shares scales among rows as long as none is lost by it.
        assert (made <= 2.5 * expected.max() + 0.05).all()
    else:
        assert (made <= 1.7 * expected + 0.05).all()


@pytest.mark.parametrize("mix", ["wide", "one small", "one large", "subnormal"])
@pytest.mark.parametrize("options", [{}, {"bits_per_weight": 7.5}, {"bits_per_weight": 3.0}], ids=str)
def test_ecq_gives_rows_that_no_step_suits_scales_of_their_own(options: dict[str, Any], mix: str) -> None:
    value = scaled(weights(), MIXES[mix](torch.Generator().manual_seed(1)).int().numpy())
    made = errors("ecq", options, value, "f32")
    assert (made <= 1.7 * errors("ecq", options, weights(), "f32") + 0.05).all()
    [note] = result_of("ecq", options, value, "f32").notes
    assert note == "layer.weight: its rows are too uneven for one step, each has a scale of its own"


def test_ecq_keeps_one_step_where_rows_are_uneven_as_models_have_them() -> None:
    value = weights() * torch.logspace(0, -4, ROWS)[:, None]
    made = result_of("ecq", {}, value, "f32")
    assert isinstance(made.quantized, Uniform)
    assert made.quantized.row_scale is None
    assert made.notes == ()


def wanted_mask(name: str, options: dict[str, Any], value: torch.Tensor, exponent: int) -> torch.Tensor:
    """Which weights the method leaves other than 0."""
    found: torch.Tensor = simulate(quantized(name, options, value, "f32", exponent)) != 0
    return found


@pytest.mark.parametrize("exponent", [-100, 0, 100])
@pytest.mark.parametrize(("name", "options"), [("wanda", {}), ("jsq", {"search_steps": 0})], ids=str)
def test_rows_of_any_magnitude_are_pruned_where_they_would_be(
    name: str, options: dict[str, Any], exponent: int
) -> None:
    value = scaled(weights(), MIXES["wide"](torch.Generator().manual_seed(1)).int().numpy())
    options = {**options, "scaling": "none"}
    plain = wanted_mask(name, options, weights(), 0)
    assert plain.sum() == plain.numel() / 2
    assert torch.equal(wanted_mask(name, options, value, exponent), plain)


@pytest.mark.parametrize("exponent", [-100, -30, 0, 100])
def test_weights_and_inputs_of_any_magnitude_are_compared_all_over_the_tensor(exponent: int) -> None:
    value = scaled(weights(), MIXES["wide"](torch.Generator().manual_seed(1)).int().numpy())
    statistics = ColumnStatistics(COLUMNS)
    statistics.add(scaled(weights(3, 9), exponent))
    inputs = InputStatistics(COLUMNS, MethodOptions(pruning="linf"))
    inputs.columns = statistics
    made = prune(value.clone(), inputs, MethodOptions(pruning="linf", sparsity=0.3))
    scores = (value.double().abs() * statistics.largest.double()).flatten()
    least = scores.argsort()[: round(0.3 * scores.numel())]
    assert torch.equal((made.flatten() == 0).nonzero()[:, 0], least.sort().values)


@pytest.mark.parametrize("exponents", [(-90, -90), (-90, 0), (0, 90), (-60, -40), (90, 100), (100, -90)])
def test_a_hessian_of_batches_of_any_magnitude_is_that_of_all(exponents: tuple[int, int]) -> None:
    batches = [scaled(weights(seed, 32), exponent) for seed, exponent in enumerate(exponents)]
    made = Hessian(COLUMNS)
    for batch in (torch.zeros(2, COLUMNS), *batches):
        made.add(batch)
    x = torch.cat(batches).double()
    expected = 2 / (len(x) + 2) * (x.T @ x)
    off = made.matrix.double() * 4.0**made.exponent - expected
    assert off.abs().max() <= 1e-5 * expected.abs().max()
    assert Hessian(3).matrix.tolist() == torch.zeros(3, 3).tolist()


@pytest.mark.parametrize("exponent", [-149, -100, 0, 80, 127])
def test_statistics_of_columns_of_any_magnitude(exponent: int) -> None:
    x = scaled(torch.tensor([[1.0, 0.0, -1.5], [1.0, 0.0, 0.5]]), exponent)
    statistics = ColumnStatistics(3)
    statistics.add(x)
    assert statistics.is_finite
    torch.testing.assert_close(statistics.largest, x.abs().amax(0), rtol=0, atol=0)
    torch.testing.assert_close(statistics.rms, x.double().square().mean(0).sqrt().float())


@pytest.mark.parametrize(("name", "options"), CALIBRATED, ids=str)
def test_inputs_that_are_not_finite_are_said(name: str, options: dict[str, Any]) -> None:
    method, checked = method_of(name, options)
    value = weights()
    weight = Weight("layer.weight", tuple(value.shape), "f32", "linear")
    statistics = method.accumulator(COLUMNS, checked)
    inputs = weights(2, 8)[None].clone()
    inputs[0, 3, 5] = torch.inf
    statistics.add(inputs)
    site = Site((Layer(weight, "layer", value.clone),), statistics, lambda: iter([inputs]))
    made = method.quantize_block(Block("block", (site,), torch.nn.Module(), {}, lambda: inputs), checked)
    assert torch.isfinite(simulate(made["layer.weight"].quantized)).all()
    assert any("the inputs are not finite" in note for note in made["layer.weight"].notes)


@pytest.mark.parametrize("mix", ["two kinds", "one large", "wide"])
@pytest.mark.parametrize(("name", "options"), PER_TENSOR, ids=str)
def test_one_step_for_a_tensor_is_as_fine_as_its_largest_row_needs(
    name: str, options: dict[str, Any], mix: str
) -> None:
    value = scaled(weights(), MIXES[mix](torch.Generator().manual_seed(1)).int().numpy())
    norms = value.double().norm(dim=1)
    off = errors(name, options, value, "f32") * norms / norms.max()
    assert (off <= 1.2 * errors(name, options, weights(), "f32").max() + 0.005).all()


@pytest.mark.parametrize("bits", [2, 4, 5, 8])
def test_groups_of_a_row_may_be_of_any_magnitude(bits: int) -> None:
    exponents = torch.randint(-95, 96, (ROWS, COLUMNS // 16, 1), generator=torch.Generator().manual_seed(2))
    exponents[0, :2] = -140
    plain = weights().reshape(ROWS, -1, 16)
    value = scaled(plain, exponents.int().numpy())
    value[5, 1:3] = 0
    made = round_groups(value.reshape(ROWS, COLUMNS), bits, 16)
    off = torch.from_numpy(made.dequantize()).reshape(value.shape).double() - value.double()
    size = value.double().norm(dim=2)
    expected = torch.from_numpy(round_groups(plain.reshape(ROWS, COLUMNS), bits, 16).dequantize())
    bound = (expected.reshape(plain.shape) - plain).norm(dim=2) / plain.norm(dim=2)
    assert (off.norm(dim=2) <= (1.5 * bound + 0.01) * size).all()
    assert made.scale.dtype == "f32"
    assert not made.dequantize()[5, 16:48].any()


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_rows_and_groups_of_zeros_stay_zeros_and_others_do_not_mind(
    name: str, options: dict[str, Any]
) -> None:
    value = weights()
    value[16:32] = 0
    value[3] = 0
    value[40, 16:48] = 0
    restored = simulate(quantized(name, options, value, "f32"))
    assert not restored[16:32].any()
    assert not restored[3].any()
    some = torch.ones(ROWS, dtype=torch.bool)
    some[16:32] = some[3] = some[40] = False
    error = (restored - value)[some].norm(dim=1) / value[some].norm(dim=1)
    assert (error <= 1.7 * float(errors(name, options, weights(), "f32").max()) + 0.02).all()
    assert not simulate(quantized(name, options, torch.zeros(ROWS, COLUMNS), "f32")).any()


def test_rows_that_supergroups_would_lose_are_said() -> None:
    value = weights()
    plain, uneven = (
        result_of("spqr", {"bits": 3}, v, "f32")
        for v in (value, value * torch.logspace(0, -8, ROWS)[:, None])
    )
    assert plain.notes == ()
    [note] = uneven.notes
    assert note == "layer.weight: its rows are too uneven for supergroups, each group has a scale of its own"
    for made, per_group in ((plain, 10), (uneven, 35)):
        assert isinstance(made.quantized, Grouped)
        assert made.quantized.outliers is not None
        n_outliers = made.quantized.outliers.rows.size
        assert made.formula_bits == value.numel() * (3 + per_group / 16) + 32 * n_outliers


@pytest.mark.parametrize(
    ("bits", "exponent", "dtype"),
    [(4, 0, "f16"), (4, -7, "f16"), (8, -5, "f16"), (4, 12, "f16"), (4, 20, "bf16"), (8, 30, "f32"), (4, -30, "bf16")],
)  # fmt: skip
def test_scales_take_the_narrowest_dtype_that_holds_them(bits: int, exponent: int, dtype: str) -> None:
    for made in (
        round_groups(scaled(weights(), exponent), bits, 16),
        quantized("gptq", {"bits": bits, "group_size": 16}, scaled(weights(), exponent), "f32"),
    ):
        assert isinstance(made, Grouped)
        assert made.scale.dtype == dtype


def test_ordinary_weights_are_stored_as_ever() -> None:
    value = weights() * 0.05
    low, high = value.reshape(-1, 16).amin(1), value.reshape(-1, 16).amax(1)
    made = round_groups(value, 4, 16)
    np.testing.assert_array_equal(made.scale.values.reshape(-1), ((high - low) / 15).half().numpy())
    assert made.zero_point is not None
    assert made.zero_point.dtype == "u4"
    spqr = quantized("spqr", {}, value, "f32")
    assert isinstance(spqr, Grouped)
    assert spqr.supergroup == (16, 1)
    assert (spqr.scale.dtype, spqr.scale.steps_dtype, spqr.scale.zeros_dtype) == ("u4", "f16", "f16")
    assert spqr.outliers is not None
    assert spqr.outliers.dtype == "f16"
    ecq = quantized("ecq", {"no_calibration": True}, value, "f32")
    assert isinstance(ecq, Uniform)
    assert ecq.row_scale is not None
    assert ecq.row_scale.dtype == "log8"


@pytest.mark.parametrize(
    ("value", "dtype", "words"),
    [
        (torch.tensor([[1.0, torch.nan]]), "f32", "NaN or Inf"),
        (torch.tensor([[1.0, -torch.inf]]), "bf16", "NaN or Inf"),
        (torch.tensor([[1.0, -2e35]]), "bf16", r"too large or too small .* \(up to 2e\+35\)"),
        (torch.tensor([[1.0, 40000.0]]), "f16", "too large"),
        (torch.tensor([[1e-39, 0.0]]), "f32", "too small"),
        (torch.tensor([[1e300, 0.0]], dtype=torch.float64), "f64", "too large"),
        (torch.tensor([[1.0, 0.0], [1e-60, 0.0]], dtype=torch.float64), "f64", "too small"),
    ],
)
def test_what_no_method_computes_with_is_refused(value: torch.Tensor, dtype: str, words: str) -> None:
    weight = Weight("a.weight", tuple(value.shape), dtype, "linear")
    with pytest.raises(EncodeError, match=rf"'a\.weight' .*{words}.*lossless keeps it"):
        as_matrix(weight, value.to(TORCH_DTYPES[dtype]))
