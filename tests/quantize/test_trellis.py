"""Codes along a trellis: native as numpy, valid paths, the best of all, and never worse than without at equal bits."""

from collections.abc import Callable
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import spqfmt
from spqfmt.errors import OptionError
from spqfmt.kernels.rate import ESCAPE, choose_codes, choose_codes_plain, improve_codes, improve_codes_plain
from spqfmt.packing.options import pack_options
from spqfmt.quantize.base import MethodOptions, Weight
from spqfmt.quantize.ecq import METHOD
from spqfmt.quantize.ecq.grid import InputGrid, input_grid, plain_grid
from spqfmt.quantize.ecq.method import quantize_matrix
from spqfmt.quantize.ecq.sweep import Chosen, RowGrid, choose
from spqfmt.quantize.ecq.trellis import Trellis, choose_along
from spqfmt.schemes.codes import Layout
from spqfmt.schemes.trellis import folded, tiles_of

ROWS, COLUMNS = 37, 8
BORDERS = np.array([0, 10, 10, 37], np.uint64)
NEXT = ((0, 1), (2, 3), (5, 4), (7, 6), (1, 0), (3, 2), (4, 5), (6, 7))


def _problem(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    weights = rng.normal(0, 6, (ROWS, 20)).astype(np.float32)
    weights[3, 7], weights[20, 9] = 900, -700
    upper = np.triu(rng.normal(0, 0.2, (COLUMNS, COLUMNS))).astype(np.float32)
    np.fill_diagonal(upper, 0.5 + rng.random(COLUMNS))
    slope = (0.1 + rng.random(ROWS)).astype(np.float32)
    slope[4] = 1e-37
    return {
        "weights": weights,
        "block": slice(5, 5 + COLUMNS),
        "upper": upper,
        "row_step": (0.3 + rng.random(ROWS)).astype(np.float32),
        "column_step": (0.5 + rng.random(COLUMNS)).astype(np.float32),
        "slope": slope,
        "bits": (1 + np.abs(np.arange(-128, 128)) * 0.5).astype(np.float32),
    }


def _descent(seed: int) -> dict[str, Any]:
    problem, rng = _problem(seed), np.random.default_rng(seed)
    problem["gradients"], problem["hessian"] = (
        problem.pop("weights"),
        problem.pop("upper") + 4 * np.eye(COLUMNS, dtype=np.float32),
    )
    problem["hessian"] += problem["hessian"].T.copy()
    problem["codes"] = np.rint(rng.normal(0, 6, (ROWS, COLUMNS))).astype(np.int8)
    problem["codes"][2, 3] = ESCAPE
    return problem


def _is_path(codes: Any, borders: Any) -> bool:
    """By the definition, state after state; an escape may have any code."""
    for first, stop in pairwise(borders):
        for column in codes[int(first) : int(stop)].T.tolist():
            state = 0
            for code in column:
                if code != ESCAPE and code % 2 != state % 2:
                    return False
                state = NEXT[state][0 if code == ESCAPE else code // 2 % 2]
    return True


@pytest.mark.parametrize("seed", range(3))
def test_the_native_paths_are_those_of_numpy_bit_for_bit(seed: int) -> None:
    native, threads, plain = _problem(seed), _problem(seed), _problem(seed)
    codes, errors = choose_codes(**native, borders=BORDERS)
    expected, expected_errors = choose_codes_plain(**plain, borders=BORDERS)
    assert np.array_equal(choose_codes(**threads, borders=BORDERS, n_threads=2)[0], expected)
    assert np.array_equal(codes, expected)
    assert np.array_equal(errors, expected_errors)
    assert np.array_equal(native["weights"], plain["weights"])
    assert np.argwhere(codes == ESCAPE).tolist() == [[3, 2], [20, 4]]
    assert _is_path(codes, BORDERS)
    assert not _is_path(codes, [0, 11, 37])
    better, best = _descent(seed), _descent(seed)
    changes = improve_codes(**better, borders=BORDERS)
    assert np.array_equal(changes, improve_codes_plain(**best, borders=BORDERS))
    assert np.array_equal(better["codes"], best["codes"])
    assert np.array_equal(better["gradients"], best["gradients"])
    assert best["codes"][2, 3] == ESCAPE
    assert _is_path(best["codes"], BORDERS)


def test_no_path_is_cheaper_than_the_chosen_one() -> None:
    problem = _problem(5) | {
        "upper": np.eye(COLUMNS, dtype=np.float32),
        "slope": np.full(ROWS, 0.3, np.float32),
    }
    borders = np.array([0, 6, ROWS], np.uint64)
    before = problem["weights"].copy()
    codes, _ = choose_codes(**problem, borders=borders)
    column = 1
    step = problem["row_step"] * problem["column_step"][column]
    scaled = before[:, 5 + column] / step
    dearness = step**2 / problem["slope"]

    def cost(path: Any) -> float:
        rows = zip(path, scaled, dearness, strict=False)
        return sum(float(d) * (x - v) ** 2 + 1 + abs(v // 2) * 0.5 for v, x, d in rows)

    least = float("inf")
    for lowest in product((0, 1), repeat=6):
        state, path = 0, []
        for i, bit in enumerate(lowest):
            # All codes with this lowest bit of the path code, of which the cheapest is the best for what follows.
            values = [v for v in range(-127, 128) if v % 2 == state % 2 and v // 2 % 2 == bit]
            path.append(
                min(values, key=lambda v: float(dearness[i]) * (scaled[i] - v) ** 2 + abs(v // 2) * 0.5)
            )
            state = NEXT[state][bit]
        least = min(least, cost(path))
    assert cost(codes[:6, column].tolist()) == pytest.approx(least, rel=1e-5)


def test_borders_that_do_not_fit_are_refused() -> None:
    for borders in ([0, 10], [1, 37], [0, 20, 10, 37], []):
        with pytest.raises(ValueError, match="borders"):
            choose_codes(**_problem(0), borders=np.array(borders, np.uint64))


def _correlated(loudest: float, rows: int = 160, columns: int = 192) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights whose rows are up to so many times as loud as the quietest, and the Hessian of their inputs."""
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(500, columns, generator=generator) @ torch.randn(
        columns, columns, generator=generator
    )
    loudness = torch.linspace(0, 1, rows)[torch.randperm(rows, generator=generator)]
    matrix = torch.randn(rows, columns, generator=generator) * 0.05 * loudest ** loudness[:, None]
    return matrix, 2 / 500 * inputs.t() @ inputs


def _loss(chosen: Chosen, matrix: torch.Tensor, hessian: torch.Tensor, grid: InputGrid, step: float) -> float:
    values = torch.from_numpy(chosen.codes.astype(np.float32) * np.float32(step) * grid.column_step)
    return float((((values - matrix) @ hessian) * (values - matrix)).sum())


@pytest.mark.parametrize("sweeps", [0, 2])
def test_at_equal_bits_a_trellis_loses_less(sweeps: int) -> None:
    matrix, hessian = _correlated(1.5)
    grid = input_grid(hessian, 0.1, sweeps=sweeps)
    for step in (0.02, 0.06):
        apart = choose(matrix, grid, RowGrid(), np.float32(step))
        along = choose_along(matrix, grid, RowGrid(), np.float32(step / 2), Trellis(128, 160))
        saved = (apart.bits - along.bits) / matrix.numel()
        losses = [_loss(apart, matrix, hessian, grid, step), _loss(along, matrix, hessian, grid, step / 2)]
        assert saved + 0.5 * np.log2(losses[0] / losses[1]) > 0.07


def test_rows_are_stored_in_classes_whose_first_rows_begin_paths() -> None:
    matrix, hessian = _correlated(20)
    matrix[11, 5] = 40
    grid = input_grid(hessian, 0.1)
    again, made = (
        quantize_matrix(matrix, grid, RowGrid(), np.float32(0.06), trellis=Trellis(128, 160))
        for _ in range(2)
    )
    assert np.array_equal(made.codes, again.codes)
    assert made.layout.channel_order is not None
    stored = made.codes[made.layout.channel_order]
    folded(stored, tiles_of(128, 160, made.layout.class_sizes))
    with pytest.raises(ValueError, match="no path"):
        folded(stored, tiles_of(128, 160, None))
    assert made.outliers is not None
    assert [made.outliers.rows.tolist(), made.outliers.columns.tolist()] == [[11], [5]]
    assert abs(made.dequantize()[11, 5] - 40) < 0.1
    error = torch.from_numpy(made.dequantize()) - matrix
    assert error.abs().max() < 0.25


def test_a_stack_of_matrices_begins_anew_in_each_and_keeps_its_order() -> None:
    matrix, _ = _correlated(1)
    stack = Trellis(128, 20)
    made = quantize_matrix(matrix, plain_grid(192), RowGrid(), np.float32(0.02), trellis=stack)
    assert made.layout.channel_order is None
    assert _is_path(made.codes, range(0, 161, 20))
    assert stack.coding(160, Layout()).borders is not None
    assert made.encode().parameters["trellis"] == {"rows": 128}


def test_a_trellis_is_for_enough_rows_and_bits() -> None:
    options = METHOD.check(MethodOptions(bits_per_weight=3.0, trellis=True))
    assert Trellis.of(Weight("a", (256, 64), "bf16", "linear"), options) == Trellis(128, 256)
    assert Trellis.of(Weight("a", (2, 64, 32), "bf16", "linear", transposed=True), options) == Trellis(
        128, 32
    )
    assert Trellis.of(Weight("a", (8, 64), "bf16", "linear"), options) is None
    assert Trellis.of(Weight("a", (256, 64), "bf16", "linear"), MethodOptions()) is None
    for bits in (1.5, 5.5):
        with pytest.raises(OptionError, match="--trellis is for 2 to 5 bits"):
            pack_options(method="ecq", bits=bits, trellis=True)
    with pytest.raises(OptionError, match="takes no --trellis"):
        pack_options(method="gptq", bits=4, trellis=True)


def test_a_packed_file_has_its_bits_and_weights_nearer_to_the_source(
    tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tiny_folder("llama")
    [weights] = folder.glob("*.safetensors")
    source = load_file(weights)
    sizes, errors = [], []
    for name, trellis in (("apart", None), ("along", True)):
        out = tmp_path / f"{name}.spq"
        made = spqfmt.pack(folder, out, method="ecq", bits=3.0, no_calibration=True, trellis=trellis)
        sizes.append(made.file_bytes)
        with spqfmt.open(out) as file:
            errors.append(sum(float((file.read(n).float() - source[n].float()).square().sum()) for n in file))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.01)
    assert 0.5 * np.log2(errors[0] / errors[1]) > 0.05
    spqfmt.verify(tmp_path / "along.spq")
