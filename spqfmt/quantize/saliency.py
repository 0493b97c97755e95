"""SAR, the saliency of JSQ (equations 2 to 4): what a weight does for the output, and for the output's range."""

import torch

REFERENCE_TOKENS = 2048
"""The paper's sample length. ||X_j||_2 grows with the number of tokens and the range does not, so the norm is taken for
this many tokens whatever the samples' length: lambda then means what it means in the paper."""
_FIRST = 8
_TIERS = (64, 512)
_BLOCK = 1 << 20


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
    maximum, as long as |x_tj w_ij| is small beside the spread of y: first the 8 largest are looked at, then, for the
    pairs (i, j) where a bound on all other tokens leaves a doubt, the 64 largest, the 512 largest, and all. Cost: one
    product of inputs and weights, 16 multiplications a weight, and 128, 1024 or twice the tokens for a pair in doubt:
    under one in a hundred in layers of some hundred columns, more in narrow ones.
    """
    return _largest_without(inputs, weights) + _largest_without(-inputs, weights)


def _largest_without(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """max over t of y_ti - x_tj w_ij, [out, in]; the minimum is minus this for -x."""
    y = w @ x.t()
    n_tokens = x.shape[0]
    values, tokens = torch.topk(y, min(_TIERS[-1] + 1, n_tokens), dim=1)
    low, high = x.amin(0), x.amax(0)
    found = torch.full_like(w, -torch.inf)
    k = min(_FIRST, n_tokens)
    step = max(1, _BLOCK // w.shape[1])
    for first in range(0, w.shape[0], step):
        rows = slice(first, min(first + step, w.shape[0]))
        for rank in range(k):
            corrected = torch.addcmul(values[rows, rank, None], x[tokens[rows, rank]], w[rows], value=-1)
            torch.maximum(found[rows], corrected, out=found[rows])
    pairs = torch.empty(0, 2, dtype=torch.long)
    if k < n_tokens:
        # No other token can give more than the next output and the largest correction together.
        bound = torch.maximum(-w * low, -w * high).add_(values[:, k, None])
        pairs = torch.nonzero(found < bound)
    for k in _TIERS:
        still = [pairs[:0]]
        for part in torch.split(pairs, _BLOCK // k):
            i, j = part.unbind(1)
            weight = w[i, j]
            largest = (values[i, :k] - x[tokens[i, :k], j[:, None]] * weight[:, None]).amax(1)
            found[i, j] = largest
            if k < n_tokens:
                bound = torch.maximum(-weight * low[j], -weight * high[j]).add_(values[i, k])
                still.append(part[largest < bound])
        pairs = torch.cat(still)
    columns = x.t().contiguous()
    for part in torch.split(pairs, max(1, _BLOCK // n_tokens)):
        i, j = part.unbind(1)
        found[i, j] = (y[i] - columns[j].mul_(w[i, j, None])).amax(1)
    return found
