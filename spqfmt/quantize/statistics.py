"""Ready accumulators for calibrated methods."""

import math

import torch

# Columns computed at once; what lies below the diagonal's blocks of a Hessian follows by symmetry.
_PANEL = 256


_ORDINARY = 20
"""Inputs whose largest lies within so many octaves of 1 are summed as they are."""


class Hessian:
    """Sum of x x^T over all tokens. `matrix` is 2/N X^T X of inputs times 2^-exponent, float32 [columns, columns].

    The exponent is 0 for ordinary inputs. Products of others would leave float32; methods want the matrix but for a
    factor.
    """

    def __init__(self, n_columns: int) -> None:
        self.sum = torch.zeros(n_columns, n_columns)
        self.n_tokens = 0
        self.exponent = 0
        self._is_empty = True

    def add(self, inputs: torch.Tensor) -> None:
        """Add the outer products of some tokens, [..., columns]."""
        x = inputs.reshape(-1, inputs.shape[-1]).float()
        if self.sum.device != x.device:
            self.sum = self.sum.to(x.device)
        self.n_tokens += x.shape[0]
        x = times_power(x, -self._exponent_with(x))
        for first in range(0, x.shape[1], _PANEL):
            panel = slice(first, min(first + _PANEL, x.shape[1]))
            # Only the blocks on and right of the diagonal: half of the work.
            self.sum[panel, first:].addmm_(x[:, panel].t(), x[:, first:])

    def _exponent_with(self, x: torch.Tensor) -> int:
        """Exponent of all inputs and these; sums until now are divided by what the exponent grows by, squared."""
        largest = max(abs(float(bound)) for bound in x.aminmax()) if x.numel() else 0.0
        if largest and math.isfinite(largest):
            exponent = math.frexp(largest)[1]
            if abs(exponent) <= _ORDINARY:
                exponent = 0
            if self._is_empty:
                self.exponent = exponent
            elif exponent > self.exponent + (_ORDINARY if exponent else 0):
                self.sum = times_power(self.sum, 2 * (self.exponent - exponent))
                self.exponent = exponent
            self._is_empty = False
        return self.exponent

    @property
    def matrix(self) -> torch.Tensor:
        """2/N X^T X by 4^exponent, as a new float32 matrix where the inputs are; zeros when no token was seen."""
        matrix = self.sum * (2 / max(1, self.n_tokens))
        for first in range(0, len(matrix), _PANEL):
            end = min(first + _PANEL, len(matrix))
            corner = matrix[first:end, first:end]
            corner.copy_(corner.triu() + corner.triu(1).t())
            matrix[end:, first:end] = matrix[first:end, end:].t()
        return matrix

    def take(self) -> torch.Tensor:
        """Return `matrix`, for the last time: the sum is given up, which is as large."""
        matrix = self.matrix
        self.sum = torch.zeros(0, 0)
        return matrix


class ColumnStatistics:
    """What holds for each column over all tokens: `largest` = max|x|, `rms`, `low` and `high`; float32 [columns]."""

    def __init__(self, n_columns: int) -> None:
        self.n_tokens = 0
        self.low = torch.full((n_columns,), torch.inf)
        self.high = torch.full((n_columns,), -torch.inf)
        self._squares = torch.zeros(n_columns, dtype=torch.float64)

    def add(self, inputs: torch.Tensor) -> None:
        """Add some tokens, [..., columns]."""
        x = inputs.reshape(-1, inputs.shape[-1]).float().cpu()
        if not x.shape[0]:
            return
        self.n_tokens += x.shape[0]
        self.low = torch.minimum(self.low, x.amin(0))
        self.high = torch.maximum(self.high, x.amax(0))
        for first in range(0, x.shape[1], _PANEL):
            panel = slice(first, first + _PANEL)
            # In float64, which holds the squares of all float32.
            self._squares[panel] += x[:, panel].double().square_().sum(0)

    @property
    def is_finite(self) -> bool:
        """Whether no input was NaN or infinite."""
        return bool(torch.isfinite(self._squares).all())

    @property
    def largest(self) -> torch.Tensor:
        """max|x|; 0 when no token was seen."""
        return torch.maximum(self.low.abs(), self.high.abs()) if self.n_tokens else torch.zeros_like(self.low)

    @property
    def rms(self) -> torch.Tensor:
        """Root of the mean square of each column."""
        return (self._squares / max(1, self.n_tokens)).sqrt().float()


def times_power(values: torch.Tensor, exponent: int) -> torch.Tensor:
    """Float32 `values` times 2^exponent: exact, but for what leaves the range of float32."""
    while exponent:
        step = max(-100, min(100, exponent))
        values, exponent = values * 2.0**step, exponent - step
    return values
