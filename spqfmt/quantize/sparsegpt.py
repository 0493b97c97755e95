"""SparseGPT's update (arXiv 2301.00774): the weights that stay make up for those that are cut."""

import torch

from spqfmt.quantize.base import MethodOptions
from spqfmt.quantize.feedback import factorize, sweep
from spqfmt.quantize.inputs import InputStatistics
from spqfmt.quantize.pruning import PATTERNS, least_of_each, least_of_rows

_COLUMNS = 128
"""Columns whose cut is chosen together, once the feedback of those before has reached them."""


def sparse_update(
    matrix: torch.Tensor, inputs: InputStatistics, options: MethodOptions
) -> tuple[torch.Tensor, str]:
    """`matrix` [out, in] pruned and updated, and a note of what had to be done about the Hessian ("" when nothing had).

    What is cut has the least w^2 / U_jj^2 among the weights of all rows in 128 columns, or in each group of a pattern.
    """
    assert inputs.hessian is not None
    assert options.damping is not None
    assert options.sparsity is not None
    share = options.sparsity
    factor = factorize(inputs.hessian.matrix, options.damping, act_order=False).here()
    diagonal = factor.upper.diagonal()
    pattern = PATTERNS[options.pattern or "unstructured"]
    width = _COLUMNS if pattern is None else pattern[1]
    cut: list[torch.Tensor] = []

    def choose(first: int, group: torch.Tensor) -> None:
        # In the order of their squares, which might leave float32.
        scores = (group / diagonal[first : first + len(group), None]).abs().t().contiguous()
        if pattern is None:
            cut[:] = [least_of_rows(scores.reshape(1, -1), share).reshape(scores.shape)]
        else:
            cut[:] = [least_of_each(scores, *pattern)]

    def round_column(number: int, column: torch.Tensor) -> torch.Tensor:
        return column.masked_fill(cut[0][:, number % width], 0)

    columns = matrix.t().contiguous()
    sweep(columns, factor.upper, width, fit=choose, round_column=round_column)
    return columns.t().contiguous(), factor.note
