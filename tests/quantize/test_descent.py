"""Codes made better after the feedback: native as numpy, never a worse sum, and the efforts that ask for it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spqfmt.errors import OptionError
from spqfmt.kernels.rate import ESCAPE, improve_codes, improve_codes_plain
from spqfmt.packing.options import pack_options
from spqfmt.quantize.ecq.counts import code_bits, counts_of
from spqfmt.quantize.ecq.descent import descend
from spqfmt.quantize.ecq.grid import input_grid
from spqfmt.quantize.ecq.sweep import RowGrid, choose

ROWS, COLUMNS = 37, 150


def _hessian(columns: int, seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    x = np.random.default_rng(seed).normal(0, 1, (columns + 20, columns))
    x += x[:, :1]
    return (x.T @ x / len(x) + 0.1 * np.eye(columns)).astype(np.float32)


def _problem(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    codes = np.rint(rng.normal(0, 3, (ROWS, 20))).astype(np.int8)
    codes[3, 4], codes[5, 10] = ESCAPE, 126
    slope = (rng.random(ROWS) * 0.2).astype(np.float32)
    slope[:5] = 0
    return {
        "gradients": rng.normal(0, 2, (ROWS, 50)).astype(np.float32),
        "block": slice(10, 30),
        "hessian": _hessian(20, seed),
        "codes": codes,
        "row_step": (0.3 + rng.random(ROWS)).astype(np.float32),
        "column_step": (0.5 + rng.random(20)).astype(np.float32),
        "slope": slope,
        "bits": (1 + np.abs(np.arange(-128, 128)) * 0.5).astype(np.float32),
    }


@pytest.mark.parametrize("seed", range(4))
def test_the_native_codes_are_those_of_numpy_bit_for_bit(seed: int) -> None:
    native, threads, plain = _problem(seed), _problem(seed), _problem(seed)
    before = plain["codes"].copy()
    changes = improve_codes(**native)
    expected = improve_codes_plain(**plain)
    assert np.array_equal(improve_codes(**threads, n_threads=2), expected)
    assert np.array_equal(changes, expected)
    assert np.array_equal(native["codes"], plain["codes"])
    assert np.array_equal(native["gradients"], plain["gradients"])
    assert plain["codes"][3, 4] == ESCAPE
    assert 0.1 < (plain["codes"] != before).mean() < 1


def test_buffers_that_do_not_fit_together_are_refused() -> None:
    problem = _problem(0)
    problem["hessian"] = problem["hessian"][:-1]
    with pytest.raises(ValueError, match="hessian"):
        improve_codes(**problem)


def test_the_sum_of_error_and_bits_falls_and_escapes_stay() -> None:
    rng = np.random.default_rng(5)
    hessian = _hessian(COLUMNS, 5)
    weights = rng.normal(0, 2, (ROWS, COLUMNS)).astype(np.float32)
    codes = np.rint(weights / 0.8).astype(np.int8)
    codes[2, 7] = ESCAPE
    kept = weights + np.float32(0.01)
    steps = np.full(ROWS, 0.8, np.float32), np.ones(COLUMNS, np.float32)
    slope = np.full(ROWS, 0.05, np.float32)
    found = descend(
        codes,
        weights,
        2,
        kept=kept[codes == ESCAPE],
        hessian=torch.from_numpy(hessian),
        row_step=steps[0],
        column_step=steps[1],
        slope=slope,
    )
    assert np.array_equal(found == ESCAPE, codes == ESCAPE)
    bits = code_bits(counts_of(codes))

    def cost(codes: Any) -> float:
        values = np.where(codes == ESCAPE, kept, codes * np.float32(0.8))
        error = (values - weights).astype(np.float64)
        return float(
            np.einsum("ij,jk,ik->", error, hessian, error) + 0.05 * bits[codes.astype(int) + 128].sum()
        )

    assert cost(found) < 0.9 * cost(codes)


def test_what_the_feedback_has_chosen_becomes_better_too() -> None:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(400, 96, generator=generator) @ torch.randn(96, 96, generator=generator)
    matrix = torch.randn(64, 96, generator=generator) * 0.05
    hessian = 2 / 400 * inputs.t() @ inputs
    losses, bits = [], []
    for sweeps in (0, 2):
        grid = input_grid(hessian, 0.1, sweeps=sweeps)
        chosen = choose(matrix, grid, RowGrid(), np.float32(0.03))
        values = torch.from_numpy(chosen.codes.astype(np.float32) * np.float32(0.03) * grid.column_step)
        error = (values - matrix) @ hessian.clone().add_(0.1 * hessian.diagonal().mean() * torch.eye(96))
        losses.append(float((error * (values - matrix)).sum()))
        bits.append(chosen.bits / matrix.numel())
    assert losses[1] < losses[0]
    assert bits[1] < bits[0] + 0.02


def test_an_effort_is_what_is_done_where_nothing_else_is_said(tmp_path: Path) -> None:
    fast, best = (pack_options(method="ecq", bits=3.0, effort=effort) for effort in ("fast", "best"))
    assert (fast.calibration.samples, fast.calibration.sequential) == (32, False)
    assert (best.calibration.samples, best.calibration.sequential) == (128, True)
    normal = pack_options(method="ecq", bits=3.0)
    assert (normal.calibration.samples, normal.calibration.sequential) == (32, True)
    assert not normal.method_options.gradients
    assert best.method_options.gradients
    assert not fast.method_options.gradients
    own = pack_options(method="ecq", bits=3.0, effort="best", samples=7, sequential=False)
    assert (own.calibration.samples, own.calibration.sequential) == (7, False)
    with pytest.raises(OptionError, match="effort is one of fast, normal, best"):
        pack_options(method="ecq", bits=3.0, effort="slow")
    with pytest.raises(OptionError, match="--no-calibration leaves out"):
        pack_options(method="ecq", bits=3.0, effort="best", no_calibration=True)
    with pytest.raises(OptionError, match="takes no --effort"):
        pack_options(method="rtn", bits=3, effort="best")
