"""Shares and patterns of pruned weights, to the weight."""

from dataclasses import replace

import pytest
import torch

from spqfmt.errors import OptionError
from spqfmt.quantize.base import MethodOptions
from spqfmt.quantize.inputs import InputStatistics
from spqfmt.quantize.pruning import CRITERIA, least_of_each, prune
from spqfmt.quantize.registry import METHODS
from spqfmt.quantize.sparsegpt import sparse_update

SMOOTH = METHODS["smoothquant"]


def statistics(options: MethodOptions, n_columns: int, inputs: torch.Tensor | None = None) -> InputStatistics:
    gathered = InputStatistics(n_columns, options)
    generator = torch.Generator().manual_seed(0)
    gathered.add(torch.randn(3, 40, n_columns, generator=generator) if inputs is None else inputs)
    return gathered


def matrix_of(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))


def cut(matrix: torch.Tensor, options: MethodOptions) -> torch.Tensor:
    inputs = statistics(options, matrix.shape[1])
    if options.pruning == "sparsegpt":
        return sparse_update(matrix, inputs, options)[0]
    return prune(matrix.clone(), inputs, options)


@pytest.mark.parametrize("criterion", [*CRITERIA, "sparsegpt"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.75])
def test_share_is_exact(criterion: str, share: float) -> None:
    options = SMOOTH.check(MethodOptions(pruning=criterion, sparsity=share))
    pruned = cut(matrix_of(16, 60), options)
    assert int((pruned == 0).sum()) == round(share * 16 * 60)


@pytest.mark.parametrize("criterion", ["wanda", "sar"])
def test_rows_are_pruned_alike(criterion: str) -> None:
    options = SMOOTH.check(MethodOptions(pruning=criterion, sparsity=0.5))
    matrix = matrix_of(8, 30)
    matrix[0] *= 100
    assert (cut(matrix, options) == 0).sum(1).tolist() == [15] * 8


@pytest.mark.parametrize("criterion", [*CRITERIA, "sparsegpt"])
@pytest.mark.parametrize(("pattern", "kept", "width"), [("2:4", 2, 4), ("4:8", 4, 8)])
@pytest.mark.parametrize("columns", [64, 70])
def test_pattern_holds_in_every_group(
    criterion: str, pattern: str, kept: int, width: int, columns: int
) -> None:
    options = SMOOTH.check(MethodOptions(pruning=criterion, pattern=pattern))
    assert options.sparsity == 0.5
    pruned = cut(matrix_of(16, columns), options)
    groups = torch.nn.functional.pad(pruned, (0, -columns % width)).reshape(16, -1, width)
    n_kept = (groups != 0).sum(2)
    assert (n_kept[:, : columns // width] == kept).all()
    assert (n_kept <= kept).all()


def test_the_least_of_a_group_go() -> None:
    mask = least_of_each(torch.tensor([[4.0, 1.0, 3.0, 2.0, 9.0]]), 2, 4)
    assert mask.tolist() == [[False, True, False, True, False]]


def test_criteria_by_their_formulas() -> None:
    inputs = torch.tensor([[[1.0, -8.0, 2.0], [1.0, 0.0, 2.0]]])
    matrix = torch.tensor([[6.0, 1.0, -2.0]])
    # |w|: 6 1 2; |w| rms: 6, 5.66, 4; |w| max|x|: 6, 8, 4.
    options = SMOOTH.check(MethodOptions(pruning="magnitude", sparsity=1 / 3))
    gathered = statistics(options, 3, inputs)
    results = {
        name: prune(matrix.clone(), gathered, replace(options, pruning=name)).tolist()[0]
        for name in ("magnitude", "wanda", "linf")
    }
    assert results == {"magnitude": [6, 0, -2], "wanda": [6, 1, 0], "linf": [6, 1, 0]}
    half = replace(options, pruning="linf", sparsity=2 / 3)
    assert prune(matrix.clone(), gathered, half).tolist() == [[0, 1, 0]]


def test_without_inputs_magnitude_decides() -> None:
    options = SMOOTH.check(MethodOptions(pruning="wanda", sparsity=0.5))
    pruned = prune(
        torch.tensor([[1.0, -4.0, 3.0, 2.0]]), statistics(options, 4, torch.zeros(1, 8, 4)), options
    )
    assert pruned.tolist() == [[0, -4, 3, 0]]


def test_sparsegpt_loses_less_than_its_mask_alone() -> None:
    generator = torch.Generator().manual_seed(7)
    mixing = torch.randn(60, 60, generator=generator)
    inputs = torch.randn(1, 400, 60, generator=generator) @ mixing
    options = SMOOTH.check(MethodOptions(pruning="sparsegpt", sparsity=0.5))
    matrix = matrix_of(16, 60)
    updated, note = sparse_update(matrix, statistics(options, 60, inputs), options)
    masked = matrix * (updated != 0)

    def loss(other: torch.Tensor) -> float:
        return float((inputs @ (matrix - other).t()).square().sum())

    assert not note
    assert loss(updated) < 0.8 * loss(masked)


@pytest.mark.parametrize(
    "options",
    [
        MethodOptions(pruning="wanda", sparsity=1.0),
        MethodOptions(pruning="wanda", sparsity=-0.1),
        MethodOptions(pruning="wanda", sparsity=float("nan")),
        MethodOptions(pruning="fisher", sparsity=0.5),
        MethodOptions(sparsity=0.5),
        MethodOptions(pruning="wanda", sparsity=0.6, pattern="2:4"),
        MethodOptions(pruning="wanda", pattern="3:4"),
        MethodOptions(bits=1),
        MethodOptions(bits=9),
        MethodOptions(alpha=1.5),
        MethodOptions(alpha=float("nan")),
        MethodOptions(scaling="both"),
        MethodOptions(activations="int4"),
        MethodOptions(group_size=32),
        MethodOptions(granularity="group", scaling="none", group_size=0),
        MethodOptions(granularity="column"),
        MethodOptions(range_weight=-1.0),
        MethodOptions(saliency_tokens="some"),
        MethodOptions(embedding_bits=12),
    ],
)
def test_options_that_make_no_sense(options: MethodOptions) -> None:
    with pytest.raises(OptionError):
        SMOOTH.check(options)


@pytest.mark.parametrize("options", [MethodOptions(search_steps=-1), MethodOptions(search_samples=0)])
def test_searches_that_make_no_sense(options: MethodOptions) -> None:
    with pytest.raises(OptionError):
        METHODS["jsq"].check(options)
