"""Ready accumulators for calibrated methods."""

import torch

# Columns of a Hessian computed at once; what lies below the diagonal's blocks follows by symmetry.
_PANEL = 256


class Hessian:
    """Sum of x x^T over all tokens. `matrix` is 2/N X^T X, float32 [columns, columns]."""

    def __init__(self, n_columns: int) -> None:
        self.sum = torch.zeros(n_columns, n_columns)
        self.n_tokens = 0

    def add(self, inputs: torch.Tensor) -> None:
        """Add the outer products of some tokens, [..., columns]."""
        x = inputs.reshape(-1, inputs.shape[-1]).float()
        if self.sum.device != x.device:
            self.sum = self.sum.to(x.device)
        self.n_tokens += x.shape[0]
        for first in range(0, x.shape[1], _PANEL):
            panel = slice(first, min(first + _PANEL, x.shape[1]))
            # Only the blocks on and right of the diagonal: half of the work.
            self.sum[panel, first:].addmm_(x[:, panel].t(), x[:, first:])

    @property
    def matrix(self) -> torch.Tensor:
        """2/N X^T X as a new float32 matrix on the CPU; zeros when no token was seen."""
        upper = self.sum.cpu() * (2 / max(1, self.n_tokens))
        return upper.triu() + upper.triu(1).t()


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
        self._squares += x.square().sum(0, dtype=torch.float64)

    @property
    def largest(self) -> torch.Tensor:
        """max|x|; 0 when no token was seen."""
        return torch.maximum(self.low.abs(), self.high.abs()) if self.n_tokens else torch.zeros_like(self.low)

    @property
    def rms(self) -> torch.Tensor:
        """Root of the mean square."""
        return (self._squares / max(1, self.n_tokens)).sqrt().float()
