"""Products straight from compressed blocks: are they right, and how fast beside decoding first."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from gpu_lines import NotHereError, Options
from gpu_machine import Check, open_check
from gpu_straight_bf16 import multiplies_bf16, rate_of_bf16

from spqfmt import wire
from spqfmt.codecs.chunks import TARGET_CHUNK_BYTES
from spqfmt.kernels import native
from spqfmt.kernels.device import (
    READ_AHEAD_BYTES,
    ChunkJob,
    DeviceGroupValues,
    GroupScales,
    Matrix,
    UniformScales,
    chunk_job,
    plan_chunks,
    raise_fault,
)
from spqfmt.kernels.device.fusing import MAX_FUSED_TOKENS, FusedPlan, kind_of, plan_fused
from spqfmt.kernels.device.matrix import Scales
from spqfmt.kernels.device.prepared import Product

TOKENS = (1, 3, MAX_FUSED_TOKENS)
BLOCK_LOG2 = (13, 14, 16)
_SHAPE = 67, 1056
_LEAST_EDGE = 128
"""What a row has at least for such a product."""


def straight(options: Options) -> None:
    """Every form first, then INT8 codes with a scale for each row, and BF16 weights, at the sizes of a layer."""
    check = open_check(options)
    for name, dtype, scales in _forms(check):
        for n_tokens in TOKENS:
            check.case(
                f"fused {name}, {n_tokens} tokens",
                partial(_multiplies, check, dtype, scales, n_tokens=n_tokens),
            )
    for n_tokens in TOKENS:
        check.case(f"fused bf16, {n_tokens} tokens", partial(multiplies_bf16, check, n_tokens))
    for n_tokens in (1, MAX_FUSED_TOKENS):
        check.case(f"fused bf16 weights, {n_tokens} tokens", partial(rate_of_bf16, check, n_tokens))
    for block_log2 in BLOCK_LOG2:
        for n_tokens in (1, MAX_FUSED_TOKENS):
            check.case(
                f"fused int8 codes, {n_tokens} tokens, blocks of {1 << block_log2} bytes",
                partial(_rate, check, block_log2, n_tokens=n_tokens),
            )


def _forms(check: Check) -> list[tuple[str, str, Scales]]:
    n_rows, n_columns = _SHAPE
    generator = torch.Generator().manual_seed(8)

    def values(*shape: int) -> torch.Tensor:
        return check.on(2.0 ** torch.randint(-1, 2, shape, generator=generator))

    groups = DeviceGroupValues(values(n_rows, n_columns // 32).half())
    zeros = DeviceGroupValues(check.on(torch.full((n_rows, n_columns // 32), 7, dtype=torch.uint8)))
    return [
        ("rows", "i8", UniformScales(values(n_rows))),
        ("rows and columns", "i8", UniformScales(values(n_rows), values(n_columns))),
        ("groups i8", "i8", GroupScales(32, groups)),
        ("groups u8", "u8", GroupScales(32, groups, zeros)),
        ("groups i4", "i4", GroupScales(32, groups, minimum=zeros)),
        ("groups u4", "u4", GroupScales(32, groups, zeros)),
    ]


def _packed(
    check: Check, shape: tuple[int, int], matrix: Matrix, block_log2: int
) -> tuple[torch.Tensor, list[ChunkJob], FusedPlan, torch.Tensor]:
    """Stored bytes and plan on the device, and the codes, on the host."""
    kind = kind_of(matrix)
    assert kind is not None
    row_bytes = shape[1] // kind.per_symbol
    raw = np.random.default_rng(9).normal(0, 20, shape[0] * row_bytes).clip(-127, 127).astype(np.int8)
    codes, jobs, sent = raw.view(np.uint8), [], bytearray()
    step = max(1, TARGET_CHUNK_BYTES // row_bytes) * row_bytes
    for first in range(0, codes.size, step):
        part = codes[first : first + step]
        chunk = native.rans_encode(part, block_log2)
        sent += bytes(-len(sent) % 64)
        jobs.append(chunk_job(chunk, wire.CODEC_RANS, len(sent), out_offset=first, raw_bytes=part.size))
        sent += chunk
    plan = plan_fused(jobs, kind.per_symbol, shape[1], range(shape[0]))
    assert plan is not None
    stored = check.on(torch.frombuffer(sent + bytes(READ_AHEAD_BYTES), dtype=torch.uint8))
    return stored, jobs, plan.at(check.on(plan.records)), torch.from_numpy(codes)


def _prepared(
    check: Check,
    stored: torch.Tensor,
    plan: FusedPlan,
    matrix: Matrix,
    error: torch.Tensor | None,
    n_tokens: int,
) -> Product:
    sums = torch.empty(plan.sum_bytes(MAX_FUSED_TOKENS), dtype=torch.uint8, device=check.device)
    found = check.kernels.prepare_fused(
        stored, plan, matrix, torch.bfloat16, bias=None, sums=sums, error=error, is_one=n_tokens == 1
    )
    if found is None:
        raise NotHereError("these kernels have no such product here")
    return found


def _multiplies(check: Check, dtype: str, scales: Scales, n_tokens: int) -> bool:
    """Inputs are whole numbers, and scales powers of two: what is right is right to the bit."""
    matrix = Matrix(_SHAPE, dtype, scales)
    stored, _, plan, codes = _packed(check, _SHAPE, matrix, 10)
    weights = check.on(torch.empty(_SHAPE))
    check.kernels.dequantize(check.on(codes), matrix, range(_SHAPE[0]), weights)
    x = torch.randint(-3, 4, (n_tokens, _SHAPE[1]), generator=torch.Generator().manual_seed(n_tokens))
    y, given = check.on(torch.zeros(n_tokens, _SHAPE[0]).bfloat16()), check.on(x.bfloat16())
    error = check.on(torch.zeros(1, dtype=torch.int32))
    _prepared(check, stored, plan, matrix, error=error, n_tokens=n_tokens)(given, stored, y, n_tokens)
    raise_fault(int(error))
    expected = (x.double() @ weights.cpu().double().t()).bfloat16()
    return torch.equal(y.cpu(), expected)


def _rate(check: Check, block_log2: int, n_tokens: int) -> None:
    edge, n = max(check.sizes.edge, _LEAST_EDGE), check.sizes.n_matrices
    matrix = Matrix((edge, edge), "i8", UniformScales(torch.ones(edge, device=check.device)))
    one, jobs, plan, _ = _packed(check, (edge, edge), matrix, block_log2)
    stored = [one, *(one.clone() for _ in range(n - 1))]
    x = torch.randn(n_tokens, edge, device=check.device).bfloat16()
    y = torch.empty(n_tokens, edge, device=check.device).bfloat16()
    calls = [_prepared(check, each, plan, matrix, error=None, n_tokens=n_tokens) for each in stored]

    def fused() -> None:
        for call, each in zip(calls, stored, strict=True):
            call(x, each, y, n_tokens)

    first = _decoded_first(check, stored, jobs, matrix, x=x)
    rates = [n * edge * edge / check.seconds(run) / 1e9 for run in (fused, first)]
    what = f"fused int8 codes, {n_tokens} tokens, blocks of {1 << block_log2} bytes"
    check.add(what, rates[0], unit="GB/s of codes", note=f"decoded first {rates[1]:.3g}")
    if n_tokens == 1:
        check.figure("fused", max(1e9 * rates[0], check.figures.get("fused", 0.0)))


def _decoded_first(
    check: Check, stored: list[torch.Tensor], jobs: list[ChunkJob], matrix: Matrix, x: torch.Tensor
) -> Callable[[], None]:
    """The same by decoding each matrix to memory, and a product with what lies there."""
    edge = matrix.shape[0]
    plan = plan_chunks(jobs)
    plan = plan.at(check.on(plan.records))
    tables = check.on(torch.empty(plan.table_words, dtype=torch.int32))
    out = torch.empty(edge * edge, dtype=torch.uint8, device=check.device)
    error = check.on(torch.zeros(1, dtype=torch.int32))
    sums = torch.empty(len(x), edge, device=check.device)
    decodes = [check.kernels.prepare_decode(each, plan, out, tables, error=error) for each in stored]

    def run() -> None:
        for decode in decodes:
            decode()
            check.kernels.multiply(x, out, matrix, rows=range(edge), y=sums)

    return run
