"""Path codes become codes where they are, those of many parts by one launch; what is none is told."""

import numpy as np
import pytest
import torch

from spqfmt.errors import CorruptError
from spqfmt.kernels.device import raise_fault
from spqfmt.kernels.device.unfolding import COLUMNS, RECORD_WORDS, PathJob, n_programs, plan_paths
from spqfmt.kernels.trellis import unfold

# Interpreted, a row takes milliseconds.
SHAPES = [(1, 1, 1), (5, 3, 2), (9, COLUMNS, 128), (131, 7, 3), (6, COLUMNS + 1, 7), (12, 5, 1 << 40)]


def launched(kernels, jobs, out):
    error = torch.zeros(1, dtype=torch.int32)
    kernels.prepare_unfold(plan_paths(jobs), out, error)()
    return error.item()


def placed(seed=3):
    """Jobs with bytes between them, and all bytes."""
    jobs, at = [], 3
    for rows, columns, height in SHAPES:
        jobs.append(PathJob(at, rows, columns, height))
        at += rows * columns + 5
    return jobs, np.random.default_rng(seed).integers(-64, 64, at).astype(np.int8)


def test_they_are_those_of_the_native_core(kernels):
    jobs, paths = placed()
    out = torch.from_numpy(paths.copy()).view(torch.uint8)
    assert launched(kernels, jobs, out) == 0
    for job in jobs:
        some = slice(job.offset, job.offset + job.n_rows * job.n_columns)
        codes = paths[some].reshape(job.n_rows, job.n_columns)
        assert unfold(codes, job.height, 0, np.zeros((3, job.n_columns), np.int8))
    assert np.array_equal(out.numpy().view(np.int8), paths)


@pytest.mark.parametrize(("wrong", "number"), [(64, 0), (-65, 1), (127, 2), (-128, 4)])
def test_what_is_no_path_code_is_told(kernels, number, wrong):
    jobs, paths = placed()
    job = jobs[number]
    paths[job.offset + job.n_rows * job.n_columns - 1] = wrong
    with pytest.raises(CorruptError, match="not from -64 to 63"):
        raise_fault(launched(kernels, [job], torch.from_numpy(paths).view(torch.uint8)))
    between = placed()[1]
    between[[job.offset - 1, job.offset + job.n_rows * job.n_columns]] = wrong
    assert launched(kernels, [job], torch.from_numpy(between).view(torch.uint8)) == 0


def test_programs_are_as_many_as_are_counted_beforehand():
    for rows, columns, height in SHAPES:
        plan = plan_paths([PathJob(0, rows, columns, height)])
        assert plan.n_programs == n_programs(rows, columns, height) == plan.records.numel() // RECORD_WORDS
        found = plan.records.view(-1, RECORD_WORDS)
        assert int((found[:, 1] * found[:, 4]).sum()) == rows * columns


def test_paths_that_pass_the_end_are_refused(kernels):
    error = torch.zeros(1, dtype=torch.int32)
    with pytest.raises(ValueError, match="pass the end"):
        kernels.prepare_unfold(plan_paths([PathJob(1, 4, 4, 4)]), torch.zeros(16, dtype=torch.uint8), error)
    with pytest.raises(ValueError, match="2 GiB"):
        plan_paths([PathJob(2**31 - 10, 4, 4, 4)])
