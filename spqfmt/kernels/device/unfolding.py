"""Path codes that become codes where they are (FORMAT.md 5.3): those of all parts of a group by one launch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

COLUMNS = 256
"""Columns of one program, which takes their rows one after the other."""
ROWS = 128
"""Rows of one program, at least where there are as many: of a large tile all."""
RECORD_WORDS = 5


class PathJob(NamedTuple):
    """Rows of `n_columns` bytes from byte `offset` of what was decoded on, tiles of `height` rows from the first on."""

    offset: int
    n_rows: int
    n_columns: int
    height: int


@dataclass(frozen=True, eq=False)
class UnfoldPlan:
    """The work of one `prepare_unfold`.

    `records` is int32 [programs * RECORD_WORDS], where the kernels run: of each the first byte, its rows, the rows of a
    tile, the bytes from one row to the next, and its columns.
    """

    jobs: tuple[PathJob, ...]
    records: torch.Tensor

    @property
    def n_programs(self) -> int:
        """Programs of the launch."""
        return self.records.numel() // RECORD_WORDS

    def at(self, records: torch.Tensor) -> "UnfoldPlan":
        """The same plan with its records elsewhere; int32 of the same length."""
        return replace(self, records=records)


def plan_paths(jobs: Sequence[PathJob]) -> UnfoldPlan:
    """Lay out jobs; `records` is a new tensor on the CPU. ValueError: more than int32 can hold."""
    if any(job.offset + job.n_rows * job.n_columns > np.iinfo(np.int32).max for job in jobs):
        raise ValueError("a launch takes less than 2 GiB of decoded bytes")
    found = [np.empty((0, RECORD_WORDS), np.int64)]
    for job in jobs:
        height = min(job.height, job.n_rows)
        step = -(-ROWS // height) * height
        first = np.arange(0, job.n_rows, step)[:, None]
        column = np.arange(0, job.n_columns, COLUMNS)[None]
        program = np.empty((first.size, column.size, RECORD_WORDS), np.int64)
        program[..., 0] = job.offset + first * job.n_columns + column
        program[..., 1] = np.minimum(job.n_rows - first, step)
        program[..., 2] = height
        program[..., 3] = job.n_columns
        program[..., 4] = np.minimum(job.n_columns - column, COLUMNS)
        found.append(program.reshape(-1, RECORD_WORDS))
    records = np.concatenate(found).reshape(-1).astype(np.int32)
    return UnfoldPlan(tuple(jobs), torch.from_numpy(records))


def n_programs(n_rows: int, n_columns: int, height: int) -> int:
    """Programs of a job."""
    height = min(height, n_rows)
    return -(-n_rows // (-(-ROWS // height) * height)) * -(-n_columns // COLUMNS)
