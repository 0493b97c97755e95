"""A of JSQ's equation 3 against what it says, one weight at a time."""

import pytest
import torch

from spqfmt.quantize.base import MethodOptions
from spqfmt.quantize.inputs import InputStatistics, clipped
from spqfmt.quantize.saliency import REFERENCE_TOKENS, range_without, saliency


def plain_ranges(inputs: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    ranges = torch.empty_like(weights)
    for i in range(weights.shape[0]):
        for j in range(weights.shape[1]):
            without = weights.clone()
            without[i, j] = 0
            output = (inputs @ without.t())[:, i]
            ranges[i, j] = output.max() - output.min()
    return ranges


def inputs_of(n_tokens: int, n_columns: int, spread: float, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    columns = torch.exp(torch.randn(n_columns, generator=generator, dtype=torch.float64) * spread)
    return torch.randn(n_tokens, n_columns, generator=generator, dtype=torch.float64) * columns


# Beyond 8, 64 and 512 tokens, and columns so uneven that the likeliest tokens do not hold the maximum.
@pytest.mark.parametrize("n_tokens", [1, 2, 4, 5, 16, 17, 64, 65, 512, 513, 700])
@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0])
def test_ranges_are_those_of_the_equation(n_tokens: int, spread: float) -> None:
    inputs = inputs_of(n_tokens, 12, spread, seed=n_tokens)
    weights = torch.randn(7, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(range_without(inputs, weights), plain_ranges(inputs, weights))


def test_a_weight_that_alone_holds_the_maximum() -> None:
    # Column 0 speaks for token 0 alone, against the rest of the row: without it another token is the largest.
    inputs = torch.ones(200, 3, dtype=torch.float64)
    inputs[0, 0] = 1000
    inputs[:, 1] = torch.linspace(0, 1, 200, dtype=torch.float64)
    weights = torch.tensor([[1.0, 1.0, 0.0], [-1.0, 5.0, 2.0]], dtype=torch.float64)
    torch.testing.assert_close(range_without(inputs, weights), plain_ranges(inputs, weights))


def test_blocks_of_rows_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = inputs_of(100, 10, 2.0, seed=3)
    weights = torch.randn(23, 10, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    whole = range_without(inputs, weights)
    monkeypatch.setattr("spqfmt.quantize.saliency._BLOCK", 512)
    torch.testing.assert_close(range_without(inputs, weights), whole)


def test_saliency_is_wandas_term_plus_lambda_ranges() -> None:
    inputs = inputs_of(REFERENCE_TOKENS, 6, 1.0, seed=5)
    weights = torch.randn(4, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    rms = inputs.square().mean(0).sqrt()
    expected = inputs.norm(dim=0) * weights.abs() + 2 * range_without(inputs, weights)
    torch.testing.assert_close(saliency(weights, rms, inputs, 2.0), expected)


def test_a_sample_is_clipped_to_its_own_largest() -> None:
    samples = torch.stack((torch.arange(200.0).reshape(10, 20), -torch.ones(10, 20)))
    samples[1, 0, 0] = -5
    limited = clipped(samples)
    # 2 of 200 are the largest 1 %.
    torch.testing.assert_close(limited[0].flatten(), torch.arange(200.0).clamp(max=198))
    assert (limited[1] == -1).all()


def test_tokens_for_ranges_are_means_of_positions_or_all() -> None:
    batches = [torch.rand(2, 5, 3), torch.rand(1, 5, 3)]
    means, every = (
        InputStatistics(3, MethodOptions(pruning="sar", saliency_tokens=t)) for t in ("mean", "all")
    )
    for batch in batches:
        means.add(batch)
        every.add(batch)
    samples = torch.cat(batches)
    torch.testing.assert_close(means.tokens, clipped(samples).mean(0))
    assert torch.equal(every.tokens, samples.reshape(-1, 3))
    # A layer that sees some tokens only.
    means = InputStatistics(3, MethodOptions(pruning="sar", saliency_tokens="mean"))
    means.add(samples[0])
    assert torch.equal(means.tokens, samples[0])
