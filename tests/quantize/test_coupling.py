"""Rows that make up for each other's errors: a lower loss at the same bits, escapes kept, nothing new where none is."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from spqfmt.quantize.ecq.coupling import Coupling, choose_coupled
from spqfmt.quantize.ecq.grid import InputGrid, input_grid
from spqfmt.quantize.ecq.moments import OutputMoments
from spqfmt.quantize.ecq.sweep import Chosen, RowGrid, choose

ROWS, COLUMNS = 44, 70
STEP = np.float32(0.7)


def _moments(seed: int, size: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(3 * size, size, generator=g) @ torch.randn(size, size, generator=g)
    x += 4 * torch.randn(3 * size, 1, generator=g)
    return x.t() @ x / len(x)


def _problem(sweeps: int) -> tuple[torch.Tensor, InputGrid, RowGrid, torch.Tensor]:
    matrix = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(1)) * 2
    outputs = _moments(2, ROWS)
    rows = RowGrid.of_layer(matrix, outputs.diagonal().double().numpy())
    return matrix, input_grid(_moments(3, COLUMNS), 0.1, sweeps=sweeps), rows, outputs


def _values(chosen: Chosen, grid: InputGrid, rows: RowGrid) -> Any:
    step = STEP * rows.step(ROWS)[:, None] * grid.column_step
    values = chosen.codes.astype(np.float32) * step
    values[chosen.escapes.rows, chosen.escapes.columns] = chosen.escapes.values
    return values


@pytest.mark.parametrize("sweeps", [0, 3])
def test_the_loss_of_both_sides_is_lower_at_the_same_bits(sweeps: int) -> None:
    matrix, grid, rows, outputs = _problem(sweeps)
    coupling = Coupling.of(OutputMoments(outputs, 100_000))
    assert coupling is not None
    inputs = _moments(3, COLUMNS).numpy()
    losses = []
    for chosen in (
        choose(matrix, grid, rows, STEP),
        choose_coupled(matrix, grid, rows, STEP, coupling=coupling),
    ):
        assert chosen is not None
        error = _values(chosen, grid, rows) - matrix.numpy()
        # A bit more is a fourth of the loss.
        losses.append(np.trace(coupling.matrix @ error @ inputs @ error.T) * 4 ** (chosen.bits / error.size))
    assert losses[1] < 0.85 * losses[0]


def test_rows_that_share_nothing_have_the_codes_that_they_have_alone() -> None:
    matrix, grid, rows, outputs = _problem(0)
    coupling = Coupling.of(OutputMoments(outputs.diagonal().diag(), 100_000))
    assert coupling is not None
    alone = choose(matrix, grid, replace(rows, weight=coupling.weight), STEP)
    coupled = choose_coupled(matrix, grid, rows, STEP, coupling=coupling)
    assert coupled is not None
    assert (coupled.codes == alone.codes).mean() > 0.99
    assert coupled.bits == pytest.approx(alone.bits, rel=0.01)


def test_what_no_code_stands_for_is_kept() -> None:
    matrix, grid, rows, outputs = _problem(2)
    matrix[5, 7], matrix[20, 3] = 3000.0, -5000.0
    coupling = Coupling.of(OutputMoments(outputs, 1000))
    assert coupling is not None
    chosen = choose_coupled(matrix, grid, rows, STEP, coupling=coupling)
    assert chosen is not None
    places = zip(chosen.escapes.rows.tolist(), chosen.escapes.columns.tolist(), strict=True)
    assert {(5, 7), (20, 3)} <= set(places)
    kept = _values(chosen, grid, rows)
    assert abs(kept[5, 7] - 3000) < 30
    assert abs(kept[20, 3] + 5000) < 50
    assert (np.abs(chosen.codes.astype(int)) <= 127).all()


def test_fewer_tokens_damp_more_and_what_has_no_factor_is_left() -> None:
    outputs = _moments(2, ROWS)
    many, few = (Coupling.of(OutputMoments(outputs, n)) for n in (100_000, 16 * ROWS))
    assert many is not None
    assert few is not None
    mean = float(outputs.diagonal().mean())
    added = [(c.matrix.diagonal() - outputs.diagonal().numpy()).mean() / mean for c in (many, few)]
    assert added == pytest.approx([0.3, 0.55], rel=0.01)
    for nothing in (torch.zeros(4, 4), torch.full((4, 4), torch.nan)):
        assert Coupling.of(OutputMoments(nothing, 100)) is None


def test_steps_beyond_the_ordinary_are_left_to_others() -> None:
    matrix, grid, rows, outputs = _problem(0)
    coupling = Coupling.of(OutputMoments(outputs, 1000))
    assert coupling is not None
    assert choose_coupled(matrix, grid, rows, np.float32(2.0**-60), coupling=coupling) is None
