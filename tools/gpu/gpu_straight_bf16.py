"""Products straight from lossless BF16: are they right, and how fast beside weights that are decoded."""

from dataclasses import replace

import numpy as np
import torch
from gpu_lines import NotHereError
from gpu_machine import Check
from numpy.typing import NDArray

from spqfmt import wire
from spqfmt.codecs.chunks import TARGET_CHUNK_BYTES
from spqfmt.kernels import native
from spqfmt.kernels.device import (
    READ_AHEAD_BYTES,
    ChunkJob,
    DeviceFloats,
    chunk_job,
    plan_chunks,
    raise_fault,
)
from spqfmt.kernels.device.fusing import MAX_FUSED_TOKENS, FusedPlan, plan_fused
from spqfmt.kernels.device.prepared import Product

_SHAPE = 67, 1056
_BLOCK_LOG2 = 14
_LEAST_EDGE = 128
_ALIGNMENT = 64


def _packed(
    check: Check, weights: torch.Tensor, block_log2: int
) -> tuple[torch.Tensor, list[ChunkJob], FusedPlan]:
    """BF16 weights as they are stored, and the plan for them, on the device."""
    n_rows, n_columns = weights.shape
    bits: NDArray[np.uint16] = weights.view(torch.int16).numpy().view(np.uint16).reshape(-1)
    jobs: list[ChunkJob] = []
    sent, step = bytearray(), max(1, TARGET_CHUNK_BYTES // n_columns) * n_columns
    for first in range(0, bits.size, step):
        own = bits[first : first + step]
        planes = np.empty((2, own.size), np.uint8)
        native.split_planes(own, own.itemsize, True, planes)
        low = len(sent)
        sent += planes[0].tobytes() + bytes(-own.size % _ALIGNMENT)
        chunk = native.rans_encode(planes[1], block_log2)
        job = chunk_job(chunk, wire.CODEC_RANS, len(sent), out_offset=2 * first, raw_bytes=own.size)
        jobs.append(replace(job, low=low))
        sent += chunk + bytes(-len(chunk) % _ALIGNMENT)
    plan = plan_fused(jobs, 1, n_columns, range(n_rows))
    assert plan is not None
    stored = check.on(torch.frombuffer(sent + bytes(READ_AHEAD_BYTES), dtype=torch.uint8))
    return stored, jobs, plan.at(check.on(plan.records))


def _prepared(
    check: Check,
    stored: torch.Tensor,
    plan: FusedPlan,
    shape: tuple[int, int],
    error: torch.Tensor | None,
    n_tokens: int,
) -> Product:
    found = check.kernels.prepare_fused(
        stored,
        plan,
        DeviceFloats(shape),
        torch.bfloat16,
        bias=None,
        sums=torch.empty(plan.sum_bytes(MAX_FUSED_TOKENS), dtype=torch.uint8, device=check.device),
        error=error,
        is_one=n_tokens == 1,
    )
    if found is None:
        raise NotHereError("these kernels have no such product here")
    return found


def multiplies_bf16(check: Check, n_tokens: int) -> bool:
    """Whole numbers, which come out to the bit."""
    generator = torch.Generator().manual_seed(n_tokens)
    weights = torch.randint(-100, 101, _SHAPE, generator=generator)
    x = torch.randint(-3, 4, (n_tokens, _SHAPE[1]), generator=generator)
    stored, _, plan = _packed(check, weights.bfloat16(), 10)
    y = check.on(torch.zeros(n_tokens, _SHAPE[0]).bfloat16())
    error = check.on(torch.zeros(1, dtype=torch.int32))
    product = _prepared(check, stored, plan, _SHAPE, error=error, n_tokens=n_tokens)
    product(check.on(x.bfloat16()), stored, y, n_tokens)
    raise_fault(int(error))
    return torch.equal(y.cpu(), (x.double() @ weights.double().t()).bfloat16())


def rate_of_bf16(check: Check, n_tokens: int) -> None:
    """A layer's matrices straight, decoded first, and decoded beforehand: what the plan chooses between."""
    edge, n = max(check.sizes.edge, _LEAST_EDGE), check.sizes.n_matrices
    weights = torch.randn(edge, edge, generator=torch.Generator().manual_seed(9)).mul_(0.02).bfloat16()
    one, jobs, plan = _packed(check, weights, _BLOCK_LOG2)
    stored = [one, *(one.clone() for _ in range(n - 1))]
    x = torch.randn(n_tokens, edge, device=check.device).bfloat16()
    y = torch.empty(n_tokens, edge, device=check.device).bfloat16()
    calls = [_prepared(check, each, plan, (edge, edge), error=None, n_tokens=n_tokens) for each in stored]

    def fused() -> None:
        for call, each in zip(calls, stored, strict=True):
            call(x, each, y, n_tokens)

    there = [check.on(weights) for _ in range(n)]

    def decoded() -> None:
        for each in there:
            torch.mm(x, each.t(), out=y)

    decoding = plan_chunks(jobs)
    decoding = decoding.at(check.on(decoding.records))
    tables = check.on(torch.empty(decoding.table_words, dtype=torch.int32))
    out = torch.empty(2 * edge * edge, dtype=torch.uint8, device=check.device)
    error = check.on(torch.zeros(1, dtype=torch.int32))
    decodes = [check.kernels.prepare_decode(each, decoding, out, tables, error=error) for each in stored]

    def first() -> None:
        for decode in decodes:
            decode()
            torch.mm(x, out.view(torch.bfloat16).view(edge, edge).t(), out=y)

    rates = [n * edge * edge / check.seconds(run) / 1e9 for run in (fused, first, decoded)]
    note = f"decoded first {rates[1]:.3g}, held decoded {rates[2]:.3g}"
    check.add(f"fused bf16 weights, {n_tokens} tokens", rates[0], unit="G weights/s", note=note)
