"""The corrected target of a layer: the closed form, and nearer to the unquantized output."""

import numpy as np
import torch

from spqfmt.quantize.drift import Drift
from spqfmt.quantize.ecq.correction import SUM_SHARE, corrected, share_known
from spqfmt.quantize.ecq.grid import InputGrid, input_grid
from spqfmt.quantize.statistics import Hessian

ROWS, COLUMNS, TOKENS = 12, 20, 4000
DAMPING = 0.1


def _layer() -> tuple[torch.Tensor, ...]:
    """Weights, inputs before and after (near, on fewer dimensions than columns), and sums before and after."""
    g = torch.Generator().manual_seed(3)
    before = torch.randn(TOKENS, COLUMNS, generator=g) @ torch.randn(COLUMNS, COLUMNS, generator=g)
    after = before @ (torch.eye(COLUMNS) + 0.1 * torch.randn(COLUMNS, COLUMNS, generator=g))
    residual = torch.randn(TOKENS, ROWS, generator=g)
    moved = residual + 0.2 * after @ torch.randn(COLUMNS, ROWS, generator=g)
    return torch.randn(ROWS, COLUMNS, generator=g), before, after, residual, moved


def _known(before: torch.Tensor, after: torch.Tensor) -> tuple[Drift, InputGrid]:
    hessian, drift = Hessian(COLUMNS), Drift()
    for old, new in zip(before.split(1000), after.split(1000), strict=True):
        hessian.add(new)
        drift.add(old, new)
    return drift, input_grid(hessian.matrix, DAMPING)


def test_the_corrected_weights_are_those_of_the_closed_form() -> None:
    weight, before, after, residual, moved = _layer()
    drift, grid = _known(before, after)
    for part in range(4):
        rows = slice(1000 * part, 1000 * part + 1000)
        drift.add_sum("down", residual[rows], moved[rows], inputs=after[rows])
    x, d = after.double(), (before - after).double()
    hessian = x.T @ x / TOKENS
    hessian += DAMPING * hessian.diagonal().mean() * torch.eye(COLUMNS, dtype=torch.float64)
    wanted = weight.double() @ (d.T @ x) / TOKENS
    plain = torch.linalg.solve(hessian, wanted.T).T
    wanted += SUM_SHARE * (residual - moved).double().T @ x / TOKENS
    with_sum = torch.linalg.solve(hessian, wanted.T).T
    share = share_known(TOKENS, COLUMNS)
    for module, change in (("up", plain), ("down", with_sum)):
        found = corrected(weight, module, drift, grid)
        assert torch.allclose(found.double(), weight + share * change, rtol=1e-3, atol=1e-4)


def test_what_the_corrected_layer_adds_is_nearer_to_what_the_unquantized_one_does() -> None:
    weight, before, after, residual, moved = _layer()
    drift, grid = _known(before, after)
    wanted = before @ weight.T
    error = (after @ weight.T - wanted).square().mean()
    assert (after @ corrected(weight, "up", drift, grid).T - wanted).square().mean() < 0.3 * error
    drift.add_sum("down", residual, moved, inputs=after)
    wanted = wanted + residual
    error = (after @ weight.T + moved - wanted).square().mean()
    found = corrected(weight, "down", drift, grid)
    assert (after @ found.T + moved - wanted).square().mean() < 0.6 * error


def test_less_is_corrected_the_fewer_tokens_were_seen() -> None:
    assert share_known(16384, 576) > 0.96
    assert share_known(64, 64) == 0.5
    assert share_known(1, 576) < 0.002


def test_nothing_is_corrected_where_nothing_moved_or_nothing_is_known() -> None:
    weight, before, after, *_ = _layer()
    unmoved, grid = _known(before, before)
    assert torch.equal(corrected(weight, "up", unmoved, grid), weight)
    assert torch.equal(corrected(weight, "up", Drift(), grid), weight)
    broken, grid = _known(before, after)
    broken.add(torch.full((1, COLUMNS), torch.inf), torch.ones(1, COLUMNS))
    assert torch.equal(corrected(weight, "up", broken, grid), weight)
    dead = input_grid(torch.zeros(COLUMNS, COLUMNS), DAMPING)
    assert not np.any(dead.upper)
    assert torch.equal(corrected(weight, "up", unmoved, dead), weight)
