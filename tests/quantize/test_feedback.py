"""gptq and spqr against plain.py, and what they do when inputs are degenerate."""

import numpy as np
import plain
import pytest
import torch

from spqfmt.quantize import gptq, spqr
from spqfmt.quantize.feedback import factorize
from spqfmt.quantize.gptq import layer_notes
from spqfmt.quantize.grids import fit_min_max
from spqfmt.quantize.leave_one_out import fit_range, likely_outliers
from spqfmt.quantize.supergroups import quantize_statistics


def problem(rows: int, columns: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights with a few large ones, and the Hessian of correlated inputs of uneven size."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(rows, columns, generator=generator) * 0.05
    weights[torch.rand(rows, columns, generator=generator) < 0.01] *= 6
    mix = torch.randn(columns, columns, generator=generator) / columns**0.5 + torch.eye(columns)
    sizes = torch.rand(columns, generator=generator) * 3 + 0.1
    inputs = torch.randn(6 * columns, columns, generator=generator) @ mix * sizes
    return weights, 2 / len(inputs) * inputs.t() @ inputs


def weighted_error(made: np.ndarray, weights: torch.Tensor, hessian: torch.Tensor) -> float:
    """What the layer's output loses: trace((W - Q) H (W - Q)^T)."""
    difference = torch.from_numpy(made).double() - weights.double()
    return float(torch.einsum("ij,jk,ik->", difference, hessian.double(), difference))


def agree(ours: np.ndarray, theirs: np.ndarray, share: float = 0.002) -> None:
    """The same weights; a tie in float32 may fall the other way, and then moves a few others of its row."""
    off = np.abs(ours - theirs) > 1e-5
    assert off.any(axis=1).mean() <= share * 16
    assert off.mean() <= share


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize(
    ("bits", "group_size", "shape"),
    [(2, None, (24, 40)), (4, None, (9, 33)), (3, 8, (20, 44)), (4, 130, (6, 300)), (8, 16, (16, 48))],
)
def test_gptq_is_what_the_paper_says(
    bits: int, group_size: int | None, shape: tuple[int, int], *, act_order: bool
) -> None:
    weights, hessian = problem(*shape)
    factor = factorize(hessian, 0.01, act_order=act_order)
    ours = gptq.quantize_matrix(weights, factor, bits, group_size)
    expected = plain.gptq(
        weights.numpy(), hessian.numpy(), bits=bits, group_size=group_size, damping=0.01, act_order=act_order
    )
    agree(ours.dequantize(), expected.weights)


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize(
    ("bits", "group_size", "shape", "threshold"),
    [
        (3, 16, (32, 64), 0.2),
        (2, 16, (48, 32), 0.4),
        (4, 16, (20, 70), 0.1),
        (4, 8, (17, 24), 0.05),
        (5, 200, (16, 210), 0.3),
    ],
)
def test_spqr_is_what_the_paper_says(
    bits: int, group_size: int, shape: tuple[int, int], threshold: float, *, act_order: bool
) -> None:
    weights, hessian = problem(*shape)
    factor = factorize(hessian, 1.0, act_order=act_order)
    ours = spqr.quantize_matrix(weights, factor, bits, group_size, threshold)
    expected = plain.spqr(
        weights.numpy(),
        hessian.numpy(),
        bits=bits,
        group_size=group_size,
        threshold=threshold,
        damping=1.0,
        act_order=act_order,
    )
    agree(ours.dequantize(), expected.weights)
    assert expected.outliers.any()
    assert ours.outliers is not None
    assert abs(ours.outliers.rows.size - expected.outliers.sum()) <= 0.02 * expected.outliers.sum()


@pytest.mark.parametrize("columns", [40, 1100])
def test_what_has_no_factor_in_float32_gets_one_in_float64(columns: int) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(-3, 4, (columns // 2, columns), generator=generator).float()
    hessian = inputs.t() @ inputs  # exact, and of half the rank
    damping = 1e-7  # less than a rounding of float32
    plain_factor = factorize(hessian, damping, act_order=True)
    factor = factorize(hessian, damping, act_order=True, dtype=torch.float32)
    assert torch.equal(factor.upper, plain_factor.upper)
    assert factor.note == ""


def test_feedback_beats_rounding_and_outliers_beat_none() -> None:
    weights, hessian = problem(64, 128)
    factor = factorize(hessian, 0.01, act_order=True)
    plain_factor = factorize(torch.zeros(128, 128), 0.01, act_order=True)
    rounded = gptq.quantize_matrix(weights, plain_factor, 3, 16).dequantize()
    fed_back = gptq.quantize_matrix(weights, factor, 3, 16).dequantize()
    no_outliers = spqr.quantize_matrix(weights, factor, 3, 16, float("inf"))
    outliers = spqr.quantize_matrix(weights, factor, 3, 16, 0.2)
    assert no_outliers.outliers is not None
    assert no_outliers.outliers.rows.size == 0
    errors = [
        weighted_error(made, weights, hessian)
        for made in (rounded, fed_back, no_outliers.dequantize(), outliers.dequantize())
    ]
    assert errors[1] < 0.8 * errors[0]
    assert errors[3] < 0.8 * errors[2]


def test_outliers_keep_their_value_in_16_bits() -> None:
    weights, hessian = problem(32, 32)
    weights[5, 7] = 9.0
    factor = factorize(torch.eye(32), 0.0, act_order=False)
    made = spqr.quantize_matrix(weights, factor, 3, 16, 0.2)
    # Without correlation there is no feedback: the weight is what it was, to float16.
    assert made.dequantize()[5, 7] == np.float16(9.0)
    assert hessian.shape == (32, 32)


def test_three_grids_find_what_leaving_out_each_weight_finds() -> None:
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(50, 16, generator=generator)
    weights[:, 3] *= 4
    weights[10] = 0.25  # all equal
    weights[11, :8] = weights[11, 8]  # the minimum or maximum may come several times
    diagonal = torch.rand(16, generator=generator) + 0.5
    found = likely_outliers(weights, diagonal, 3, 0.05)
    for i in (0, 7, 11, 23, 49):
        row, scale = weights[i].double().numpy(), diagonal.double().numpy()
        whole = plain._error(row, row, scale, 3)
        for j in range(16):
            others = np.delete(row, j)
            gain = whole - plain._error(others, others, np.delete(scale, j), 3)
            assert bool(found[i, j]) == (gain > 0.05), (i, j)
    assert not found[10].any()


@pytest.mark.parametrize("value", [0.0, 0.3, -0.3])
def test_a_group_of_one_value_has_a_grid_that_holds_it(value: float) -> None:
    low = torch.tensor([value])
    scale, zero = fit_range(low, low.clone(), 3)
    code = torch.round(low / scale.clamp_min(1e-9) + zero).clamp(0, 7)
    assert torch.allclose(scale * (code - zero), low)


def test_zeros_stay_zeros_beside_others() -> None:
    weights = torch.zeros(32, 32)
    weights[16:] = problem(16, 32)[0]
    made = spqr.quantize_matrix(weights, factorize(torch.eye(32), 1.0, act_order=True), 3, 16, 0.2)
    assert np.abs(made.dequantize()[:16]).max() == 0


def test_statistics_keep_within_half_a_step_of_their_tile() -> None:
    values = torch.linspace(0.01, 0.03, 37)
    made = quantize_statistics(values, "f16")
    assert made.codes.max() <= 7
    assert len(made.steps) == 3
    steps = made.steps.float().repeat_interleave(16)[:37]
    assert ((made.values - values).abs() <= 0.51 * steps).all()


@pytest.mark.parametrize("constant", [0.0, 3.5, -2.0, 1e-4, 1e4])
def test_equal_statistics_survive(constant: float) -> None:
    made = quantize_statistics(torch.full((20,), constant), "f16")
    assert torch.allclose(made.values, torch.full((20,), constant), rtol=2e-3, atol=1e-7)


@pytest.mark.parametrize(("size", "dtype"), [(1e-7, "f32"), (0.05, "f16"), (1e6, "f32")])
def test_weights_of_any_size_keep_their_precision(size: float, dtype: str) -> None:
    weights, hessian = problem(32, 64)
    factor = factorize(hessian, 1.0, act_order=True)
    weights = weights / 0.05 * size
    made = spqr.quantize_matrix(weights, factor, 4, 16, 0.2)
    assert made.scale.steps_dtype == dtype
    # Half of what an outlier's float16 tells apart is small beside half a step of 4 bits.
    assert np.abs(made.dequantize() - weights.numpy()).mean() < 0.15 * size


def test_inputs_that_are_always_zero_are_rounded_to_nearest() -> None:
    weights, hessian = problem(16, 32)
    dead = [0, 9, 31]
    hessian[dead] = 0
    hessian[:, dead] = 0
    factor = factorize(hessian, 0.01, act_order=True)
    assert factor.note == ""
    made = gptq.quantize_matrix(weights, factor, 4, None).dequantize()
    grid = fit_min_max(weights, 4)
    nearest = (torch.round(weights / grid.scale[:, None]) + grid.zero[:, None]).clamp(0, 15)
    expected = grid.scale[:, None] * (nearest - grid.zero[:, None])
    assert np.allclose(made[:, dead], expected.numpy()[:, dead])


def test_no_inputs_at_all_are_said_and_rounded_to_nearest() -> None:
    factor = factorize(torch.zeros(16, 16), 1.0, act_order=True)
    assert factor.note == "all inputs are zero, its weights are rounded to nearest"
    assert torch.equal(factor.upper, torch.eye(16))
    assert layer_notes("w", factor, torch.zeros(4, 16), 16) == (f"w: {factor.note}",)


def test_inputs_that_are_not_finite_are_said() -> None:
    hessian = torch.eye(8)
    hessian[2, 3] = torch.nan
    assert factorize(hessian, 1.0, act_order=True).note.startswith("the inputs are not finite")


def test_a_singular_hessian_is_damped_until_it_has_a_factor() -> None:
    x = torch.randn(2, 24, generator=torch.Generator().manual_seed(0))
    factor = factorize(x.t() @ x, 0.0, act_order=True)
    assert "singular, damping was raised to" in factor.note
    assert torch.isfinite(factor.upper).all()
    weights, _ = problem(8, 24)
    made = gptq.quantize_matrix(weights, factor, 4, 8).dequantize()
    assert np.isfinite(made).all()


def test_a_last_group_that_is_smaller_is_said() -> None:
    factor = factorize(torch.eye(20), 1.0, act_order=False)
    [note] = layer_notes("w", factor, torch.zeros(4, 20), 16)
    assert note == "20 columns are no multiple of 16: the last group of each row is smaller"
    weights, _ = problem(16, 20)
    made = spqr.quantize_matrix(weights, factor, 4, 16, 0.2)
    assert made.scale.values.shape == (16, 2)


def test_formula_is_the_papers() -> None:
    assert spqr.formula_bits(1000, 0, 3, 16) / 1000 == 3.625
    assert spqr.formula_bits(1000, 10, 4, 16) / 1000 == pytest.approx(4.625 + 0.32)
