"""A driver is trusted with products when it has multiplied a few right: what it compiled nobody here has seen."""

import warnings
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from spqfmt import wire
from spqfmt.errors import BackendError
from spqfmt.kernels import native
from spqfmt.kernels.cuda.driver import Driver, cuda_driver
from spqfmt.kernels.cuda.launches import prepare_fused
from spqfmt.kernels.device.chunks import READ_AHEAD_BYTES, chunk_job
from spqfmt.kernels.device.fusing import MAX_FUSED_TOKENS, plan_fused
from spqfmt.kernels.device.matrix import DeviceFloats, Matrix, UniformScales

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
    """Whether whole numbers come out as they must, by codes and by BF16 weights, for one token and for several."""
    codes = np.random.default_rng(0).normal(0, 20, _SHAPE).astype(np.int8)
    by_rows = Matrix(_SHAPE, "i8", UniformScales(torch.ones(_SHAPE[0], device=device)))
    low, high = _planes(codes)
    given = (
        (by_rows, codes.view(np.uint8).reshape(-1), b""),
        (DeviceFloats(_SHAPE), high, low.tobytes()),
    )
    return all(
        _multiplies_right(driver, device, codes, matrix, symbols=symbols, beside=beside)
        for matrix, symbols, beside in given
    )


def _planes(codes: NDArray[np.int8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Numbers as BF16, their low bytes and their high ones, as they are stored."""
    bits = (codes.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    planes = np.empty((2, codes.size), np.uint8)
    native.split_planes(bits, bits.itemsize, True, planes)
    return planes[0], planes[1]


def _multiplies_right(
    driver: Driver,
    device: torch.device,
    codes: NDArray[np.int8],
    matrix: Matrix | DeviceFloats,
    *,
    symbols: NDArray[np.uint8],
    beside: bytes,
) -> bool:
    """Likewise by one matrix, whose weights are these codes. `symbols` are coded, low bytes lie `beside` them."""
    n_rows, n_columns = _SHAPE
    generator = np.random.default_rng(1)
    chunk = native.rans_encode(symbols, _BLOCK_LOG2)
    at = len(beside)
    job = chunk_job(chunk, wire.CODEC_RANS, at, out_offset=0, raw_bytes=codes.size)
    job = replace(job, low=0) if beside else job
    plan = plan_fused([job], 1, n_columns, range(n_rows))
    assert plan is not None
    sent = bytearray(beside) + chunk + bytes(READ_AHEAD_BYTES)
    stored = torch.frombuffer(sent, dtype=torch.uint8).to(device)
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
