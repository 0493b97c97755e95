"""Embedding and head as layers of ecq: what stands for their inputs, and what an error of each row costs."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True)
class EndUse:
    """One use of a tensor. An error d of row i costs rows[i] * d H d^T, H = `columns`.

    `columns` float32 [columns, columns] is a Hessian as `input_grid` takes it, `rows` float64 [rows].
    """

    columns: torch.Tensor
    rows: torch.Tensor


def together(uses: list[EndUse]) -> tuple[torch.Tensor, NDArray[np.float64]] | None:
    """All uses of a tensor as one: Hessian, float32 [columns, columns], and what each row costs, in the mean 1.

    A tied tensor is looked up and multiplied with; its rows cost what both come to, by traces. None where nothing is
    known, or no number.
    """
    if not uses:
        return None
    hessian = torch.zeros_like(uses[0].columns, dtype=torch.float64)
    costs = torch.zeros_like(uses[0].rows, dtype=torch.float64)
    for use in uses:
        if use.columns.shape != hessian.shape or use.rows.shape != costs.shape:
            return None
        hessian += use.columns.double() * float(use.rows.mean())
        costs += use.rows * float(use.columns.double().trace())
    mean = float(costs.mean())
    if not (torch.isfinite(hessian).all() and torch.isfinite(costs).all()) or not 0 < mean < float("inf"):
        return None
    return hessian.float(), (costs / mean).numpy()
