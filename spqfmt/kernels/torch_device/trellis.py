"""Path codes -> codes (FORMAT.md 5.3)."""

import torch

from spqfmt.kernels.device.unfolding import PathJob, UnfoldPlan
from spqfmt.kernels.torch_rans import PATH_FAULT


def unfold(plan: UnfoldPlan, out: torch.Tensor, error: torch.Tensor) -> None:
    """Every job of the plan, in `out`, uint8."""
    for job in plan.jobs:
        size = job.n_rows * job.n_columns
        paths = out[job.offset : job.offset + size].view(torch.int8).view(job.n_rows, job.n_columns)
        wrong = ((paths < -64) | (paths > 63)).any()
        error |= wrong.int() << PATH_FAULT
        _unfold(paths, job)


def _unfold(rows: torch.Tensor, job: PathJob) -> None:
    """Rows of paths, int8 [rows, columns], to codes where they are."""
    zeros = torch.zeros_like(rows[0])
    one = two = three = zeros
    for row in range(job.n_rows):
        if row % job.height == 0:
            one = two = three = zeros
        rows[row] = (rows[row] << 1) | (((one >> 1) ^ two ^ three) & 1)
        one, two, three = rows[row], one, two
