"""What the integer methods gather of a layer's input."""

import torch

from spqfmt.quantize.base import MethodOptions
from spqfmt.quantize.statistics import ColumnStatistics, Hessian

CLIPPED = 0.01
"""Share of the largest |x| of a sample that is clipped before SAR takes the mean (clip_h of JSQ's code)."""


def clipped(samples: torch.Tensor) -> torch.Tensor:
    """Each sample of [samples, tokens, columns] clamped to its own quantile 1 - CLIPPED of |x|."""
    flat = samples.abs().flatten(1)
    n = max(1, int(CLIPPED * flat.shape[1]))
    limit = torch.topk(flat, n, dim=1).values[:, -1, None, None]
    return torch.minimum(torch.maximum(samples, -limit), limit)


class InputStatistics:
    """Column statistics; for sparsegpt the Hessian, and for SAR the tokens of which ranges are computed."""

    def __init__(self, n_columns: int, options: MethodOptions) -> None:
        self.columns = ColumnStatistics(n_columns)
        self.hessian = Hessian(n_columns) if options.pruning == "sparsegpt" else None
        self._keeps = options.pruning == "sar"
        self._mean = options.saliency_tokens == "mean"
        self._kept: list[torch.Tensor] = []
        self._sum: torch.Tensor | None = None
        self._n_samples = 0

    def add(self, inputs: torch.Tensor) -> None:
        """Add a batch, [samples, tokens, columns] or [tokens, columns]."""
        self.columns.add(inputs)
        if self.hessian is not None:
            self.hessian.add(inputs)
        if not self._keeps:
            return
        if self._mean and inputs.dim() == 3:
            total = clipped(inputs.float().cpu()).sum(0)
            self._sum = total if self._sum is None else self._sum + total
            self._n_samples += inputs.shape[0]
        else:
            self._kept.append(inputs.reshape(-1, inputs.shape[-1]).cpu())

    @property
    def tell(self) -> bool:
        """Whether the inputs say anything: they are finite, and not all 0."""
        return self.columns.is_finite and bool(self.columns.largest.any())

    @property
    def tokens(self) -> torch.Tensor:
        """Inputs for SAR, float32 [tokens, columns]: the samples' mean at each position, or all.

        The mean is of samples whose largest inputs are clipped, both as in JSQ's published code. Without that, the few
        massive activations of a language model (thousands, at the first token) make up the range of many outputs, and
        what SAR then cuts are the weights that carry them, which the model cannot do without. A layer that sees only
        some tokens (an expert) has no positions; all of its tokens are given.
        """
        if self._sum is not None:
            return self._sum / self._n_samples
        return torch.cat(self._kept).float()
