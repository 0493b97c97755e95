"""Are the kernels right: every kind of chunk and matrix against the plain twin on the CPU, each a case of its own."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from gpu_cases import Raw, chunk_cases, matrix_cases, moved, packed_chunks
from gpu_lines import Options
from gpu_machine import Check, open_check

from spqfmt import wire
from spqfmt.errors import CorruptError
from spqfmt.kernels import native
from spqfmt.kernels.choose import kernels_for
from spqfmt.kernels.device import (
    MAX_TOKENS,
    READ_AHEAD_BYTES,
    DeviceKernels,
    Matrix,
    chunk_job,
    plan_chunks,
    raise_fault,
)
from spqfmt.kernels.device.unfolding import PathJob, plan_paths

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def smoke(options: Options) -> None:
    """One decode: whether anything works at all."""
    check = open_check(options)
    raw = np.arange(4096).astype(np.uint8)
    check.case("one chunk", lambda: _decodes(check, native.rans_encode(raw), raw))


def kernels(options: Options) -> None:
    """All cases, as a section."""
    check_kernels(open_check(options))


def check_kernels(check: Check) -> None:
    """Every kernel against the plain twin on the CPU, or against what was encoded."""
    twin = kernels_for(torch.device("cpu"), "torch")
    for name, raw, chunk in chunk_cases():
        check.case(f"decode {name}", partial(_decodes, check, chunk, raw))
    check.case("decode of a damaged chunk is refused", lambda: _refuses_damage(check))
    for n in (70_000, 513):
        check.case(f"decode high bytes beside {n} low ones", partial(_puts_beside, check, n))
    for rotated in (False, True):
        check.case(f"merge planes, rotated {rotated}", partial(_merges, check, twin, rotated))
    check.case("unfold path codes", partial(_unfolds, check, twin))
    for name, matrix, codes in matrix_cases():
        for dtype in DTYPES:
            check.case(
                f"dequantize {name} to {str(dtype).removeprefix('torch.')}",
                partial(_dequantizes, check, twin, matrix, codes, dtype=dtype),
            )
        for n_tokens in () if matrix.by_columns else (1, 3, MAX_TOKENS):
            check.case(
                f"multiply {name}, {n_tokens} tokens",
                partial(_multiplies, check, twin, matrix, codes, n_tokens=n_tokens),
            )


def decode_onto(
    check: Check, chunks: list[bytes], raws: list[Raw]
) -> tuple[torch.Tensor, Callable[[], None]]:
    """What chunks decode to on the device in one launch, and how to do it again."""
    sizes = [raw.size for raw in raws]
    stored, plan, tables, error = packed_chunks(chunks, sizes, check.device)
    out = torch.full((sum(sizes),), 0xA5, dtype=torch.uint8, device=check.device)

    def run() -> None:
        check.kernels.decode_chunks(stored, plan, out, tables=tables, error=error)

    run()
    raise_fault(int(error))
    return out, run


def _decodes(check: Check, chunk: bytes, raw: Raw) -> bool:
    found, _ = decode_onto(check, [chunk], [raw])
    return torch.equal(found.cpu(), torch.from_numpy(raw))


def beside_onto(
    check: Check, chunks: list[bytes], lows: list[Raw]
) -> tuple[torch.Tensor, Callable[[], None]]:
    """Elements of two bytes on the device, high bytes decoded beside stored low ones, and how to do it again."""
    sent, jobs, to = bytearray(), [], 0
    for chunk, low in zip(chunks, lows, strict=True):
        places = []
        for stored in (low.tobytes(), chunk):
            sent += bytes(-len(sent) % 64)
            places.append(len(sent))
            sent += stored
        job = chunk_job(chunk, wire.CODEC_RANS, places[1], out_offset=to, raw_bytes=low.size)
        jobs.append(replace(job, low=places[0]))
        to += 2 * low.size
    plan = plan_chunks(jobs)
    out = check.on(torch.zeros(to, dtype=torch.uint8))
    tables = check.on(torch.empty(plan.table_words, dtype=torch.int32))
    error = check.on(torch.zeros(1, dtype=torch.int32))
    stored_bytes = check.on(torch.frombuffer(sent + bytes(READ_AHEAD_BYTES), dtype=torch.uint8))
    plan = plan.at(check.on(plan.records))

    def run() -> None:
        check.kernels.decode_chunks(stored_bytes, plan, out, tables=tables, error=error)

    run()
    raise_fault(int(error))
    return out, run


def _puts_beside(check: Check, n: int) -> bool:
    low = np.random.default_rng(4).integers(0, 256, n, np.uint8)
    high = np.random.default_rng(5).normal(120, 2, n).astype(np.uint8)
    out, _ = beside_onto(check, [native.rans_encode(high)], [low])
    return torch.equal(out.cpu(), torch.from_numpy(_merged(low, high)))


def _merged(low: Raw, high: Raw) -> Raw:
    merged = np.empty(2 * low.size, np.uint8)
    native.merge_planes(np.concatenate((low, high)), 2, True, merged)
    return merged


def _refuses_damage(check: Check) -> bool:
    raw = np.random.default_rng(3).normal(0, 20, 40_000).astype(np.int8).view(np.uint8)
    chunk = bytearray(native.rans_encode(raw))
    chunk[len(chunk) // 2] ^= 0x40
    try:
        decode_onto(check, [bytes(chunk)], [raw])
    except CorruptError:
        return True
    return False


def _merges(check: Check, twin: DeviceKernels, rotated: bool) -> bool:
    planes = torch.randint(0, 256, (2, 1000), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    expected, found = torch.empty(1000, dtype=torch.int16), check.on(torch.empty(1000, dtype=torch.int16))
    twin.merge_planes(planes, expected, rotated=rotated)
    check.kernels.merge_planes(check.on(planes), found, rotated=rotated)
    return torch.equal(found.cpu(), expected)


def _unfolds(check: Check, twin: DeviceKernels) -> bool:
    jobs = [PathJob(0, 4096, 576, 128), PathJob(2_400_000, 300, 1100, 7), PathJob(2_800_003, 200, 333, 1000)]
    paths = torch.randint(-64, 64, (3_000_000,), generator=torch.Generator().manual_seed(6)).to(torch.int8)
    plan, on_host = plan_paths(jobs), paths.view(torch.uint8)
    on_device = check.on(on_host.clone())
    errors = [torch.zeros(1, dtype=torch.int32), check.on(torch.zeros(1, dtype=torch.int32))]
    check.kernels.prepare_unfold(plan.at(check.on(plan.records)), on_device, errors[1])()
    twin.prepare_unfold(plan, on_host, errors[0])()
    return torch.equal(on_device.cpu(), on_host) and not any(map(int, errors))


def _dequantizes(
    check: Check, twin: DeviceKernels, matrix: Matrix, codes: torch.Tensor, dtype: torch.dtype
) -> bool:
    shape, channels = matrix.shape, range(matrix.n_channels)
    expected, found = torch.empty(shape, dtype=dtype), check.on(torch.empty(shape, dtype=dtype))
    twin.dequantize(codes, matrix, channels, expected)
    check.kernels.dequantize(check.on(codes), moved(matrix, check.device), channels, found)
    return torch.equal(found.cpu().view(torch.uint8), expected.view(torch.uint8))


def _multiplies(
    check: Check, twin: DeviceKernels, matrix: Matrix, codes: torch.Tensor, n_tokens: int
) -> bool:
    shape, channels = matrix.shape, range(matrix.n_channels)
    weights = torch.empty(shape)
    twin.dequantize(codes, matrix, channels, weights)
    x = torch.randn(n_tokens, shape[1], generator=torch.Generator().manual_seed(n_tokens))
    y = check.on(torch.empty(n_tokens, shape[0]))
    check.kernels.multiply(check.on(x), check.on(codes), moved(matrix, check.device), rows=channels, y=y)
    exact, size = x.double() @ weights.double().t(), x.double().abs() @ weights.double().abs().t()
    return bool(((y.cpu().double() - exact).abs() <= 1e-5 * size + 1e-6).all())
