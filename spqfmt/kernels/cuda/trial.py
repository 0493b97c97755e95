"""A driver is trusted with products when it has multiplied a few right: what it compiled nobody here has seen."""

import warnings
from functools import cache

import numpy as np
import torch

from spqfmt import wire
from spqfmt.errors import BackendError
from spqfmt.kernels import native
from spqfmt.kernels.cuda.driver import Driver, cuda_driver
from spqfmt.kernels.cuda.launches import prepare_fused
from spqfmt.kernels.device.chunks import READ_AHEAD_BYTES, chunk_job
from spqfmt.kernels.device.fusing import MAX_FUSED_TOKENS, plan_fused
from spqfmt.kernels.device.matrix import Matrix, UniformScales

_SHAPE = 24, 576
_BLOCK_LOG2 = 10


@cache
def trusted_driver(device: torch.device) -> Driver | None:
    """The driver of a device of NVIDIA's whose products are right; else None, which a warning explains."""
    if device.type != "cuda" or torch.version.hip is not None:
        return None
    try:
        driver = cuda_driver(device)
        if multiplies_right(driver, device):
            return driver
        why = "they multiply wrong"
    except (BackendError, RuntimeError) as error:
        why = str(error)
    warnings.warn(
        f"fused products are not used on {device}, where codes are decoded first: {why}", stacklevel=2
    )
    return None


def multiplies_right(driver: Driver, device: torch.device) -> bool:
    """Whether whole numbers come out as they must, for one token and for several."""
    n_rows, n_columns = _SHAPE
    generator = np.random.default_rng(0)
    codes = generator.normal(0, 20, _SHAPE).astype(np.int8)
    chunk = native.rans_encode(codes.view(np.uint8).reshape(-1), _BLOCK_LOG2)
    job = chunk_job(chunk, wire.CODEC_RANS, 0, out_offset=0, raw_bytes=codes.size)
    plan = plan_fused([job], 1, n_columns, range(n_rows))
    assert plan is not None
    stored = torch.frombuffer(bytearray(chunk) + bytes(READ_AHEAD_BYTES), dtype=torch.uint8).to(device)
    matrix = Matrix(_SHAPE, "i8", UniformScales(torch.ones(n_rows, device=device)))
    sums = torch.empty(plan.sum_bytes(MAX_FUSED_TOKENS), dtype=torch.uint8, device=device)
    error = torch.zeros(1, dtype=torch.int32, device=device)
    plan, right = plan.at(plan.records.to(device)), True
    for n in (1, MAX_FUSED_TOKENS):
        x = torch.from_numpy(generator.integers(-3, 4, (n, n_columns))).float()
        found, given = torch.empty(n, n_rows, device=device).bfloat16(), x.bfloat16().to(device)
        run = prepare_fused(
            driver,
            stored,
            plan,
            matrix,
            dtype=found.dtype,
            bias=None,
            sums=sums,
            error=error,
            is_one=n == 1,
        )
        run(given, stored, found, n)
        expected = (x.double() @ torch.from_numpy(codes).double().t()).bfloat16()
        right = right and torch.equal(found.cpu(), expected) and not int(error)
    return right
