"""SpQR's grids between minimum and maximum, and the weights that such a grid would be better off without."""

import torch

SMALLEST_SCALE = 1e-30
"""Instead of a scale of 0, in divisions."""


def fit_range(low: torch.Tensor, high: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and fractional zero point for weights from `low` to `high`, float32 of any one shape.

    Where both are the same number c, a grid that holds c: codes reach from 0 to it; for c = 0 the scale is 0.
    """
    highest = float(2**bits - 1)
    flat = high == low
    scale = torch.where(flat, low.abs(), high - low) / highest
    zero = -low / torch.where(scale > 0, scale, 1.0)
    flat_zero = torch.where(low == 0, highest / 2, torch.where(low > 0, 0.0, highest))
    return scale, torch.where(flat, flat_zero, zero)


def likely_outliers(weights: torch.Tensor, diagonal: torch.Tensor, bits: int, limit: float) -> torch.Tensor:
    """Which `weights` [rows, group] lower their group's error by more than `limit` when they are left out; bool.

    The error of a group is the sum of ((w - q) / U_jj)^2, with `diagonal` the U_jj of its columns. Left out, a weight
    has no error, and the grid is fitted to the others: a weight that is neither the only minimum nor the only maximum
    leaves the grid as it is, so that just three grids a row are tried.
    """
    lowest, at_low = weights.topk(2, dim=1, largest=False)
    largest, at_high = weights.topk(2, dim=1)
    errors = _errors(weights, lowest[:, 0], largest[:, 0], diagonal=diagonal, bits=bits)
    total = errors.sum(1)
    gain = errors.clone()
    for at, low, high in (
        (at_low[:, :1], lowest[:, 1], largest[:, 0]),
        (at_high[:, :1], lowest[:, 0], largest[:, 1]),
    ):
        without = _errors(weights, low, high, diagonal=diagonal, bits=bits).scatter_(1, at, 0.0)
        gain.scatter_(1, at, (total - without.sum(1))[:, None])
    return gain > limit


def _errors(
    weights: torch.Tensor, low: torch.Tensor, high: torch.Tensor, diagonal: torch.Tensor, bits: int
) -> torch.Tensor:
    scale, zero = (part[:, None] for part in fit_range(low, high, bits))
    codes = torch.round(weights / scale.clamp_min(SMALLEST_SCALE) + zero).clamp_(0, float(2**bits - 1))
    return ((scale * (codes - zero) - weights) / diagonal).square_()
