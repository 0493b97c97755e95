"""Method ecq: the choice of codes, the grid, and what odd matrices do."""

import zlib
from typing import Any

import numpy as np
import pytest
import torch

from spqfmt.errors import OptionError
from spqfmt.kernels.rate import ESCAPE, choose_codes, choose_codes_plain
from spqfmt.packing.options import pack_options
from spqfmt.quantize.base import MethodOptions, Weight
from spqfmt.quantize.ecq import METHOD, sweep
from spqfmt.quantize.ecq.grid import gradient_scale, input_grid, plain_grid
from spqfmt.quantize.ecq.method import quantize_matrix
from spqfmt.quantize.ecq.sweep import RowGrid, choose
from spqfmt.quantize.ecq.trellis import Trellis
from spqfmt.schemes.uniform import Uniform


def _problem(seed: int, rows: int = 37, columns: int = 50) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    weights = rng.normal(0, 3, (rows, columns)).astype(np.float32)
    weights[3, 14], weights[5, 20] = 900, -700
    upper = np.triu(rng.normal(0, 0.2, (20, 20))).astype(np.float32)
    np.fill_diagonal(upper, 0.5 + rng.random(20))
    slope = (rng.random(rows) * 0.2).astype(np.float32)
    slope[:5] = 0
    return {
        "weights": weights,
        "block": slice(10, 30),
        "upper": upper,
        "row_step": (0.3 + rng.random(rows)).astype(np.float32),
        "column_step": (0.5 + rng.random(20)).astype(np.float32),
        "slope": slope,
        "bits": (1 + np.abs(np.arange(-128, 128)) * 0.5).astype(np.float32),
    }


@pytest.mark.parametrize("seed", range(4))
def test_the_native_choice_of_codes_is_that_of_numpy_bit_for_bit(seed: int) -> None:
    native, plain = _problem(seed), _problem(seed)
    codes, errors = choose_codes(**native)
    expected_codes, expected_errors = choose_codes_plain(**plain)
    assert (codes == ESCAPE).sum() == 2
    assert np.array_equal(codes, expected_codes)
    assert np.array_equal(errors, expected_errors)
    assert np.array_equal(native["weights"], plain["weights"])


def test_the_choice_of_codes_does_not_depend_on_the_number_of_threads() -> None:
    one, two = _problem(1), _problem(1)
    first, second = choose_codes(**one, n_threads=1), choose_codes(**two, n_threads=2)
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(one["weights"], two["weights"])


def test_without_a_slope_codes_are_the_nearest_and_with_one_they_cost_less() -> None:
    nearest, cheap = _problem(2), _problem(2)
    nearest["slope"][:] = 0
    cheap["slope"][:] = 1
    scaled = nearest["weights"][:, 10] / nearest["row_step"] / nearest["column_step"][0]
    codes, _ = choose_codes(**nearest)
    fits = codes[:, 0] != ESCAPE
    assert np.array_equal(codes[fits, 0], np.rint(scaled[fits]))
    chosen, _ = choose_codes(**cheap)
    inside = (codes != ESCAPE) & (chosen != ESCAPE)
    assert np.abs(chosen[inside].astype(int)).sum() < np.abs(codes[inside].astype(int)).sum()


def test_buffers_that_do_not_fit_together_are_refused() -> None:
    problem = _problem(0)
    problem["slope"] = problem["slope"][:-1]
    with pytest.raises(ValueError, match="slopes"):
        choose_codes(**problem)


def _matrix(rows: int = 48, columns: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.05


def _hessian(columns: int = 64, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) * 0.3 + torch.eye(columns)
    x = torch.randn(512, columns, generator=generator) @ mixing * torch.linspace(0.1, 4, columns)
    return 2 / len(x) * x.t() @ x


def _loss(matrix: torch.Tensor, quantized: Uniform, hessian: torch.Tensor) -> float:
    error = torch.from_numpy(quantized.dequantize()) - matrix
    return float(((error @ hessian) * error).sum())


def test_column_steps_fall_with_the_root_of_the_inputs_rms() -> None:
    hessian = torch.diag(torch.tensor([2.0, 8.0, 32.0, 0.0]))
    step = input_grid(hessian, 0.1).column_step
    assert step[0] / step[1] == pytest.approx(2**0.5, rel=0.05)
    assert step[1] / step[2] == pytest.approx(2**0.5, rel=0.05)
    assert step[3] < step[0] * 1000**0.5 * 1.05  # a dead column is coarse, but no wider than that


def test_row_steps_fall_with_gradients_to_the_power_of_four_fifths() -> None:
    scale = gradient_scale(np.array([1, 16, 256], np.float32))
    assert scale is not None
    values = scale.to_float32()
    assert values[0] / values[1] == pytest.approx(4**0.8, rel=0.1)
    assert gradient_scale(np.zeros(3, np.float32)) is None


def test_feedback_and_column_steps_lower_the_error_at_no_more_bits() -> None:
    matrix, hessian = _matrix(), _hessian()
    grid = input_grid(hessian, 0.1)
    blind = quantize_matrix(matrix, plain_grid(64), RowGrid(), np.float32(0.02))
    blind_bits = choose(matrix, plain_grid(64), RowGrid(), np.float32(0.02)).bits
    step = np.float32(0.02)
    while (bits := choose(matrix, grid, RowGrid(), step).bits) > blind_bits:
        step = np.float32(step * 1.02)
    assert bits > 0.97 * blind_bits
    assert _loss(matrix, quantize_matrix(matrix, grid, RowGrid(), step), hessian) < 0.7 * _loss(
        matrix, blind, hessian
    )


def test_a_huge_outlier_keeps_its_full_value_and_costs_the_others_nothing() -> None:
    matrix, hessian = _matrix(), _hessian()
    matrix[7, 9] = 300.0
    quantized = quantize_matrix(matrix, input_grid(hessian, 0.1), RowGrid(), np.float32(0.02))
    assert quantized.outliers is not None
    assert (7, 9) in zip(quantized.outliers.rows.tolist(), quantized.outliers.columns.tolist(), strict=True)
    restored = quantized.dequantize()
    assert restored[7, 9] == pytest.approx(300, rel=0.01)
    rest = torch.from_numpy(restored) - matrix
    rest[7] = 0
    assert rest.abs().max() < 0.2


def test_a_weight_beyond_float16_is_kept_in_float32() -> None:
    matrix = _matrix()
    matrix[0, 0] = 1e6
    quantized = quantize_matrix(matrix, plain_grid(64), RowGrid(), np.float32(0.02))
    assert quantized.outliers is not None
    assert quantized.outliers.dtype == "f32"
    assert quantized.dequantize()[0, 0] == np.float32(1e6)


@pytest.mark.parametrize("value", [0.0, 0.25])
def test_constant_matrices_are_restored(value: float) -> None:
    options = METHOD.check(MethodOptions())
    weight = Weight("w", (16, 24), "f32", "linear")
    quantized = METHOD.quantize(weight, torch.full((16, 24), value), options)
    assert isinstance(quantized, Uniform)
    assert np.allclose(quantized.dequantize(), value, rtol=0.15)


def test_constant_rows_beside_loud_ones_are_restored() -> None:
    matrix = _matrix()
    matrix[3], matrix[4] = 0.0, 1e-3
    rows = RowGrid.of_norms(matrix)
    restored = quantize_matrix(matrix, plain_grid(64), rows, np.float32(0.005)).dequantize()
    assert not restored[3].any()
    assert np.allclose(restored[4], 1e-3, rtol=0.1)


def test_dead_inputs_and_unreached_layers_are_rounded_and_said() -> None:
    hessian = _hessian()
    hessian[:, 5], hessian[5] = 0, 0
    quantized = quantize_matrix(_matrix(), input_grid(hessian, 0.1), RowGrid(), np.float32(0.02))
    assert np.isfinite(quantized.dequantize()).all()
    grid = input_grid(torch.zeros(64, 64), 0.1)
    assert grid.column_scale is None
    assert "zero" in grid.note


@pytest.mark.parametrize("bits", [1.5, 3.2, 4.0, 6.7])
def test_a_tensor_alone_takes_about_the_bits_that_were_asked_for(bits: float) -> None:
    options = METHOD.check(MethodOptions(bits_per_weight=bits))
    matrix = _matrix(256, 256)
    quantized = METHOD.quantize(Weight("w", (256, 256), "f32", "linear"), matrix, options)
    assert isinstance(quantized, Uniform)
    counts = np.unique(quantized.codes, return_counts=True)[1]
    entropy = -(counts / counts.sum() * np.log2(counts / counts.sum())).sum()
    assert entropy == pytest.approx(bits, abs=0.06)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"method": "rtn", "bits": 3.5}, "whole number"),
        ({"method": "gptq", "bits": 2.25}, "ecq takes any"),
        ({"method": "ecq", "bits": 0.5}, "from 1 to 8"),
        ({"method": "ecq", "bits": 9}, "from 1 to 8"),
        ({"method": "ecq", "bits": float("nan")}, "from 1 to 8"),
        ({"method": "ecq", "group_size": 16}, "group-size"),
        ({"method": "ecq", "embedding_bits": 11}, "embedding bits"),
        ({"method": "ecq", "no_calibration": True, "gradients": True}, "no-calibration"),
        ({"method": "ecq", "no_calibration": True, "samples": 8}, "no calibration"),
        ({"method": "ecq", "codec": "raw"}, "entropy coder"),
        ({"method": "ecq", "partial": "every:2"}, "entropy coder"),
        ({"method": "ecq", "shard_size": "1GiB"}, "shard"),
        ({"fit": "1MiB", "fit_memory": "1MiB"}, "give one"),
        ({"fit": "1MiB", "bits": 3}, "give one"),
        ({"fit": "0B"}, "at least 1"),
        ({"method": "spqr", "fit": "1MiB"}, "need method ecq"),
        ({"method": "spqr", "gradients": True}, "gradients"),
    ],
)
def test_options_that_make_no_sense_are_refused_in_one_line(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says) as caught:
        pack_options(**arguments)
    assert "\n" not in str(caught.value)


def test_a_size_implies_ecq_and_other_methods_keep_whole_bits() -> None:
    assert pack_options(fit="1MiB").method.name == "ecq"
    assert pack_options(fit_memory="1MiB").method.name == "ecq"
    assert pack_options(method="rtn", bits=4.0).method_options.bits == 4


@pytest.mark.parametrize("trellis", [None, Trellis(128, 700)])
@pytest.mark.parametrize("sweeps", [0, 2])
def test_rows_are_worked_on_some_at_once(
    monkeypatch: pytest.MonkeyPatch, trellis: Trellis | None, sweeps: int
) -> None:
    """Codes and escapes are as good as those of all rows at once; without feedback they are the same."""
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(300, 64, generator=generator) @ torch.randn(64, 64, generator=generator)
    hessian = 2 / 300 * inputs.t() @ inputs
    matrix = torch.randn(700, 64, generator=generator) * torch.linspace(0.01, 0.3, 700)[:, None]
    matrix[3, 5], matrix[650, 60] = 40, -50
    rows, step = RowGrid(), np.float32(0.02)
    made = {}
    for at_once in (sweep._AT_ONCE, 64 * 130):
        monkeypatch.setattr(sweep, "_AT_ONCE", at_once)
        for grid in (plain_grid(64), input_grid(hessian, 0.1, sweeps=sweeps)):
            uniform = quantize_matrix(matrix, grid, rows, step, trellis=trellis, by_rows=True)
            made[at_once, grid.upper.size] = uniform
            assert uniform.outliers is not None
            assert set(zip(uniform.outliers.rows, uniform.outliers.columns, strict=True)) >= {
                (3, 5),
                (650, 60),
            }
    whole, pieces = sorted({at_once for at_once, _ in made}, reverse=True)
    assert np.array_equal(made[whole, 0].codes, made[pieces, 0].codes)
    assert np.array_equal(made[whole, 0].outliers.values, made[pieces, 0].outliers.values)
    losses = [_loss(matrix, made[at_once, 64 * 64], hessian) for at_once in (whole, pieces)]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    bits = [len(zlib.compress(made[at_once, 64 * 64].codes.tobytes())) for at_once in (whole, pieces)]
    assert bits[1] == pytest.approx(bits[0], rel=0.01)
