"""Products from rans blocks: decoded first, each time, then multiplied."""

from dataclasses import replace

import torch

from spqfmt.kernels.device.chunks import plan_chunks
from spqfmt.kernels.device.fusing import FusedPlan
from spqfmt.kernels.device.matrix import DeviceFloats, Matrix
from spqfmt.kernels.device.prepared import Product
from spqfmt.kernels.torch_device.rans import decode_chunks
from spqfmt.kernels.torch_device.weights import float_weights


def product(
    stored: torch.Tensor,
    plan: FusedPlan,
    matrix: Matrix | DeviceFloats,
    bias: torch.Tensor | None,
    error: torch.Tensor | None,
) -> Product:
    """What DeviceKernels.prepare_fused says: float32 weights of codes, and behind that what outliers change."""
    rows, jobs = plan.rows, plan_chunks(plan.jobs)
    inside = slice(rows.start, rows.stop)

    def multiply(x: torch.Tensor, _codes: torch.Tensor, y: torch.Tensor, n: int) -> None:
        n_bytes = sum(job.out_bytes for job in plan.jobs)
        codes = torch.empty(n_bytes, dtype=torch.uint8, device=stored.device)
        found = torch.zeros(1, dtype=torch.int32, device=stored.device) if error is None else error
        decode_chunks(stored, jobs, codes, found)
        sums = x.view(n, -1).float() @ _weights(codes, matrix, rows).t()
        y.view(n, -1)[:, inside] = sums if bias is None else sums + bias[inside]

    return multiply


def _weights(codes: torch.Tensor, matrix: Matrix | DeviceFloats, rows: range) -> torch.Tensor:
    """The weights of these rows, float32 [rows, columns]."""
    if isinstance(matrix, DeviceFloats):
        return codes.view(torch.bfloat16).view(len(rows), -1).float()
    weights = float_weights(codes, replace(matrix, outliers=None), rows, 0)
    o = matrix.outliers
    if o is not None:
        assert o.changes is not None
        of_rows = torch.repeat_interleave(o.row_begin.long().diff())
        own = (of_rows >= rows.start) & (of_rows < rows.stop)
        weights[of_rows[own] - rows.start, o.columns[own].long()] += o.changes[own]
    return weights
