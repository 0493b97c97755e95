"""Quantization with error feedback (GPTQ, arXiv 2210.17323): the later columns make up for what a column loses.

With H = 2/N X^T X (damped, columns permuted) and U the upper Cholesky factor of H^-1, the error of column j is
e = (w_j - q_j) / U_jj, and every later column k becomes w_k - e U_jk.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from spqfmt.kernels.products import one_thread

_BLOCK = 128
"""Columns whose updates of all later columns are put off and made at once, as one matrix product."""

_STRONGER = 10.0
_LEAF = 512
"""Columns of a matrix that is factored at once."""


@dataclass(frozen=True)
class Factor:
    """`order` is stored column -> column of the matrix, None when they are the same; `upper` U, float32.

    `note` says in one line what had to be done about a Hessian that has no factor; empty when nothing had to.
    """

    order: torch.Tensor | None
    upper: torch.Tensor
    note: str = ""

    def here(self) -> "Factor":
        """The same in memory of the processor."""
        order = None if self.order is None else self.order.cpu()
        return Factor(order, self.upper.cpu(), self.note)


def factorize(
    hessian: torch.Tensor, damping: float, *, act_order: bool, dtype: torch.dtype = torch.float64
) -> Factor:
    """Damp the Hessian [columns, columns], order its columns by falling diagonal, factor its inverse there.

    `damping` is in means of the diagonal. Inputs that were always zero keep only the damping on the diagonal, so that
    their weights are rounded to nearest. A matrix that is all zero is taken for the identity: everything is
    rounded to nearest. What has no factor in `dtype` gets one in float64; one that stays singular is damped ten times
    more until it has a factor.
    """
    diagonal = hessian.diagonal().double()
    mean = float(diagonal.mean())
    if not torch.isfinite(hessian).all() or mean <= 0:
        what = "all inputs are zero" if mean == 0 else "the inputs are not finite"
        return Factor(
            None,
            torch.eye(len(hessian), device=hessian.device),
            f"{what}, its weights are rounded to nearest",
        )
    order = torch.argsort(diagonal, descending=True, stable=True) if act_order else None
    note = ""
    while True:
        for kind in dict.fromkeys((dtype, torch.float64)):
            upper = _inverse_factor(hessian, order, damping * mean, kind)
            if upper is not None:
                return Factor(order, upper, note)
        damping = max(damping * _STRONGER, 1e-6)
        note = f"its Hessian is singular, damping was raised to {damping:g}"


def _inverse_factor(
    hessian: torch.Tensor, order: torch.Tensor | None, damping: float, dtype: torch.dtype
) -> torch.Tensor | None:
    """The upper U with U^T U = h^-1, float32, h damped and in this order; None where there is none.

    With the columns reversed h is L L^T, L lower; U is L^-1 reversed again: a third of the work of inverting h and
    factoring the inverse, and as exact.
    """
    columns = torch.arange(len(hessian), device=hessian.device) if order is None else order
    h = hessian[columns.flip(0)][:, columns.flip(0)].to(dtype)
    h.diagonal().add_(damping)
    if not _inverse_of_lower(h):
        return None
    upper = h.float().flip(0, 1)
    return upper if torch.isfinite(upper).all() else None


def _inverse_of_lower(h: torch.Tensor) -> bool:
    """Put L^-1 in the place of h = L L^T, by halves; whether h has such an L.

    Nearly all of it is matrix products: LAPACK's sums depend on the number of its threads, theirs do not.
    """
    n = len(h)
    if n <= _LEAF:
        with one_thread():
            lower, failed = torch.linalg.cholesky_ex(h)
            if not failed:
                identity = torch.eye(n, dtype=h.dtype, device=h.device)
                h.copy_(torch.linalg.solve_triangular(lower, identity, upper=False))
        return not failed
    k = n // 2
    first, second = h[:k, :k], h[k:, k:]
    if not _inverse_of_lower(first):
        return False
    below = h[k:, :k] @ first.t()
    second.addmm_(below, below.t(), alpha=-1)
    if not _inverse_of_lower(second):
        return False
    torch.matmul(second, below @ first, out=h[k:, :k])
    h[k:, :k].neg_()
    h[:k, k:] = 0
    return True


@one_thread()
def sweep(
    columns: torch.Tensor,
    upper: torch.Tensor,
    group_size: int,
    fit: Callable[[int, torch.Tensor], None],
    round_column: Callable[[int, torch.Tensor], torch.Tensor],
) -> None:
    """Quantize column after column; `columns` float32 [columns, rows] becomes what the quantized weights stand for.

    Before the first column of each group, `fit(first, group)` sees the group's columns as the feedback has left them.
    `round_column(number, column)` returns what column stands for once quantized.
    """
    n = len(columns)
    diagonal = upper.diagonal().tolist()
    for first, end in _blocks(n, group_size):
        errors = torch.empty(end - first, columns.shape[1])
        for j in range(first, end):
            if j % group_size == 0:
                fit(j, columns[j : j + group_size])
            rounded = round_column(j, columns[j])
            error = errors[j - first]
            torch.sub(columns[j], rounded, out=error).div_(diagonal[j])
            columns[j] = rounded
            columns[j + 1 : end].addr_(upper[j, j + 1 : end], error, alpha=-1)
        columns[end:].addmm_(upper[first:end, end:].t(), errors, alpha=-1)


def _blocks(n: int, group_size: int) -> Iterator[tuple[int, int]]:
    """Runs of about 128 columns; a group begins with one or lies inside one, so that `fit` sees it up to date."""
    if group_size <= _BLOCK:
        run = group_size * (_BLOCK // group_size)
        yield from ((first, min(first + run, n)) for first in range(0, n, run))
        return
    for start in range(0, n, group_size):
        stop = min(start + group_size, n)
        yield from ((first, min(first + _BLOCK, stop)) for first in range(start, stop, _BLOCK))
