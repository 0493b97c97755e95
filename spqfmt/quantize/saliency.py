"""SAR, the saliency of JSQ (equations 2 to 4): what a weight does for the output, and for the output's range."""

import torch

REFERENCE_TOKENS = 2048
"""The paper's sample length. ||X_j||_2 grows with the number of tokens and the range does not, so the norm is taken for
this many tokens whatever the samples' length: lambda then means what it means in the paper."""
_FIRST, _SECOND = 8, 64
_BLOCK = 1 << 19


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
    maximum, as long as |x_tj w_ij| is small beside the spread of y: first the 8 largest are looked at, then the 64
    largest for the pairs where a bound on all other tokens leaves a doubt, then all. Cost: one product of inputs and
    weights, 16 multiplications a weight, and for the pairs in doubt (a few in a hundred, outlier columns) 128 or
    2 tokens more.
    """
    return _largest_without(inputs, weights) + _largest_without(-inputs, weights)


def _largest_without(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """max over t of y_ti - x_tj w_ij, [out, in]; the minimum is minus this for -x."""
    y = w @ x.t()
    n_tokens = x.shape[0]
    n_top = min(_SECOND + 1, n_tokens)
    values, tokens = torch.topk(y, n_top, dim=1)
    low, high = x.amin(0), x.amax(0)

    def bound(rows: torch.Tensor | slice, n_seen: int) -> torch.Tensor:
        # No other token can give more than the next output and the largest correction together.
        return torch.maximum(-w[rows] * low, -w[rows] * high).add_(values[rows, n_seen, None])

    found = torch.empty_like(w)
    doubtful: list[torch.Tensor] = []
    k = min(_FIRST, n_tokens)
    step = max(1, _BLOCK // (k * w.shape[1]))
    for first in range(0, w.shape[0], step):
        rows = slice(first, min(first + step, w.shape[0]))
        corrected = x[tokens[rows, :k]].mul_(-w[rows, None]).add_(values[rows, :k, None])
        torch.amax(corrected, 1, out=found[rows])
        if k < n_tokens:
            doubt = torch.nonzero(found[rows] < bound(rows, k))
            doubtful.append(doubt.add_(torch.tensor([first, 0])))
    if not doubtful:
        return found
    pairs = torch.cat(doubtful)
    still = []
    for i, j in (part.unbind(1) for part in torch.split(pairs, _BLOCK // n_top)):
        weight = w[i, j]
        largest = (values[i] - x[tokens[i], j[:, None]] * weight[:, None]).amax(1)
        found[i, j] = largest
        if n_top < n_tokens:
            unseen = torch.maximum(-weight * low[j], -weight * high[j]).add_(values[i, n_top - 1])
            still.append(torch.stack((i, j), 1)[largest < unseen])
    columns = x.t().contiguous()
    for i, j in (
        part.unbind(1) for group in still for part in torch.split(group, max(1, _BLOCK // n_tokens))
    ):
        found[i, j] = (y[i] - columns[j].mul_(w[i, j, None])).amax(1)
    return found
