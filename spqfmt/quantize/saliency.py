"""SAR, the saliency of JSQ (equations 2 to 4): what a weight does for the output, and for the output's range."""

import torch

REFERENCE_TOKENS = 2048
"""The paper's sample length. ||X_j||_2 grows with the number of tokens and the range does not, so the norm is taken for
this many tokens whatever the samples' length: lambda then means what it means in the paper."""
_TIERS = (4, 16, 64, 512)
_BLOCK = 1 << 17
"""Elements worked on at once: what stays in a core's cache."""


def saliency(
    weights: torch.Tensor, rms: torch.Tensor, inputs: torch.Tensor, range_weight: float
) -> torch.Tensor:
    """S = I + lambda A (equation 4), float32 [out, in].

    `weights` [out, in], `rms` [in] the root mean square of each input column over all tokens, `inputs` [tokens, in]
    those of which A is computed, `range_weight` lambda.
    """
    importance: torch.Tensor = weights.abs() * (rms * REFERENCE_TOKENS**0.5)
    importance.add_(range_without(inputs, weights), alpha=range_weight)
    return importance


def range_without(inputs: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """A of equation 3, float32 [out, in]: max - min over tokens of output i when weight (i, j) is 0; exact.

    `inputs` float32 [tokens, in], `weights` float32 [out, in]. Row i alone holds w_ij, so the output without it is
    y_ti - x_tj w_ij: a rank-one correction for a column j. Nothing but the tokens with the largest y_ti can hold the
    maximum, as long as |x_tj w_ij| is small beside the spread of y: first the 4 largest are looked at, then, for the
    pairs (i, j) where a bound on all other tokens leaves a doubt, the 16, 64 and 512 largest, and all. Cost: one
    product of inputs and weights, 8 multiplications a weight, and 2 k for a pair that k tokens have to be looked at
    for: some in a hundred for 16 in layers of some hundred columns, one in a thousand for 64; more in narrow layers.
    """
    return _largest_without(inputs, weights) + _largest_without(-inputs, weights)


def _largest_without(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """max over t of y_ti - x_tj w_ij, [out, in]; the minimum is minus this for -x."""
    n_tokens = x.shape[0]
    y = w @ x.t()
    low, high = x.amin(0), x.amax(0)
    found, pairs = _first_tier(x, w, y, low=low, high=high)
    for tier in _TIERS[1:]:
        if not len(pairs):
            return found
        k = min(tier, n_tokens)
        rows, row_of = torch.unique(pairs[:, 0], return_inverse=True)
        values, tokens = torch.topk(y[rows], min(k + 1, n_tokens), dim=1)
        still = [pairs[:0]]
        size = max(1, _BLOCK // k)
        for part, row in zip(torch.split(pairs, size), torch.split(row_of, size), strict=True):
            i, j = part.unbind(1)
            weight = w[i, j]
            largest = (values[row, :k] - x[tokens[row, :k], j[:, None]] * weight[:, None]).amax(1)
            found[i, j] = largest
            if k < n_tokens:
                bound = torch.maximum(-weight * low[j], -weight * high[j]).add_(values[row, k])
                still.append(part[largest < bound])
        pairs = torch.cat(still)
    columns = x.t().contiguous()
    for part in torch.split(pairs, max(1, _BLOCK // n_tokens)):
        i, j = part.unbind(1)
        found[i, j] = (y[i] - columns[j].mul_(w[i, j, None])).amax(1)
    return found


def _first_tier(
    x: torch.Tensor, w: torch.Tensor, y: torch.Tensor, low: torch.Tensor, high: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The maximum over the few tokens with the largest outputs, and the pairs [n, 2] where another may give more."""
    n_tokens = x.shape[0]
    k = min(_TIERS[0], n_tokens)
    values, tokens = torch.topk(y, min(k + 1, n_tokens), dim=1)
    found = torch.empty_like(w)
    doubts = [torch.empty(0, 2, dtype=torch.long)]
    step = max(1, _BLOCK // w.shape[1])
    for first in range(0, w.shape[0], step):
        rows = slice(first, first + step)
        weights, best = w[rows], found[rows]
        torch.addcmul(values[rows, 0, None], x[tokens[rows, 0]], weights, value=-1, out=best)
        for rank in range(1, k):
            corrected = torch.addcmul(values[rows, rank, None], x[tokens[rows, rank]], weights, value=-1)
            torch.maximum(best, corrected, out=best)
        if k < n_tokens:
            # No other token can give more than the next output and the largest correction together.
            bound = torch.maximum(weights * -low, weights * -high).add_(values[rows, k, None])
            i, j = torch.nonzero(best < bound, as_tuple=True)
            doubts.append(torch.stack([i + first, j], 1))
    return found, torch.cat(doubts)
