"""GPTQ and SpQR once more, plainly: one weight at a time, by the papers' formulas, sharing no code with the package.

numpy in float64 but where the file's float types decide (scales, steps, zeros, outliers).
"""

from dataclasses import dataclass

import numpy as np


@dataclass
class Plain:
    """The weights that come out, in the matrix's own column order, and where the outliers are."""

    weights: np.ndarray
    outliers: np.ndarray


def factor(hessian, damping, act_order):
    """Order of the columns and U, the upper factor of the damped inverse: U^T U = H^-1."""
    h = hessian.astype(np.float64)
    order = np.argsort(-np.diag(h), kind="stable") if act_order else np.arange(len(h))
    h = h[np.ix_(order, order)]
    h = h + damping * np.mean(np.diag(h)) * np.eye(len(h))
    return order, np.linalg.cholesky(np.linalg.inv(h)).T


def gptq(matrix, hessian, *, bits, group_size, damping, act_order):
    """Optimal brain quantization, column by column: each error is spread to all later columns at once."""
    order, upper = factor(hessian, damping, act_order)
    w = matrix.astype(np.float64)[:, order]
    rows, columns = w.shape
    size = columns if group_size is None else group_size
    out = np.zeros_like(w)
    grids = [None] * rows
    for j in range(columns):
        for i in range(rows):
            if j % size == 0:
                grids[i] = _min_max_with_zero(w[i, j : j + size], bits)
            scale, zero = grids[i]
            code = np.clip(np.round(w[i, j] / scale) + zero, 0, 2**bits - 1)
            out[i, j] = scale * (code - zero)
            error = (w[i, j] - out[i, j]) / upper[j, j]
            for k in range(j + 1, columns):
                w[i, k] -= error * upper[j, k]
    return Plain(_restore(out, order), np.zeros_like(out, bool))


def spqr(matrix, hessian, *, bits, group_size, threshold, damping, act_order):
    """SpQR with its brute-force search: every weight of every group is left out once."""
    order, upper = factor(hessian, damping, act_order)
    w = matrix.astype(np.float64)[:, order]
    rows, columns = w.shape
    diagonal = np.diag(upper)
    limit = threshold * np.mean(w.var(axis=0, ddof=1) / diagonal**2)
    out, outliers = np.zeros_like(w), np.zeros(w.shape, bool)
    highest = 2**bits - 1
    scales = zeros = None
    for j in range(columns):
        if j % group_size == 0:
            stop = min(j + group_size, columns)
            fitted = [_fit_without_outliers(w[i, j:stop], diagonal[j:stop], bits, limit) for i in range(rows)]
            scales = _second_level(np.array([scale for scale, _ in fitted]))
            zeros = _second_level(np.array([zero for _, zero in fitted]))
        for i in range(rows):
            code = np.clip(np.round(w[i, j] / scales[i] + zeros[i]), 0, highest)
            out[i, j] = scales[i] * (code - zeros[i])
            if ((w[i, j] - out[i, j]) / diagonal[j]) ** 2 > limit:
                outliers[i, j] = True
                out[i, j] = np.float16(w[i, j])
            error = (w[i, j] - out[i, j]) / diagonal[j]
            for k in range(j + 1, columns):
                w[i, k] -= error * upper[j, k]
    return Plain(_restore(out, order), _restore(outliers, order))


def _fit_without_outliers(group, diagonal, bits, limit):
    everything = _error(group, group, diagonal, bits)
    likely = []
    for left_out in range(len(group)):
        others = np.delete(group, left_out)
        gain = everything - _error(others, others, np.delete(diagonal, left_out), bits)
        likely.append(gain > limit)
    likely = np.array(likely)
    mean = group[~likely].mean() if (~likely).any() else 0.0
    return _min_max(np.where(likely, mean, group), bits)


def _error(fitted_to, weights, diagonal, bits):
    scale, zero = _min_max(fitted_to, bits)
    codes = np.clip(np.round(weights / scale + zero), 0, 2**bits - 1)
    return np.sum(((scale * (codes - zero) - weights) / diagonal) ** 2)


def _min_max(weights, bits):
    scale = (weights.max() - weights.min()) / (2**bits - 1)
    return scale, -weights.min() / scale


def _min_max_with_zero(weights, bits):
    low, high = min(weights.min(), 0.0), max(weights.max(), 0.0)
    scale = float(np.float16((high - low) / (2**bits - 1)))
    return scale, np.round(-low / scale)


def _second_level(values):
    out = np.empty_like(values)
    for first in range(0, len(values), 16):
        tile = values[first : first + 16]
        step = max((tile.max() - tile.min()) / 7, np.abs(tile).max() / 512)
        step = float(np.float16(step))
        zero = float(np.float16(-tile.min() / step))
        codes = np.clip(np.round(tile / step + zero), 0, 7)
        out[first : first + 16] = step * (codes - zero)
    return out


def _restore(permuted, order):
    out = np.empty_like(permuted)
    out[:, order] = permuted
    return out
