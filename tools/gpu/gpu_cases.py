"""Chunks and matrices for tools/gpu/gpu_check.py: every kind that the kernels take, small and odd."""

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray

from spqfmt import wire
from spqfmt.codecs.zstd import CODEC, frames
from spqfmt.kernels import native
from spqfmt.kernels.device import (
    READ_AHEAD_BYTES,
    DecodePlan,
    DeviceGroupValues,
    DeviceOutliers,
    GroupScales,
    Matrix,
    UniformScales,
    chunk_job,
    plan_chunks,
)
from spqfmt.kernels.nvcomp import ZstdFrames
from spqfmt.schemes.floats import small_float_values

Raw = NDArray[np.uint8]
T = TypeVar("T")
_ROWS, _COLUMNS = 33, 160


def chunk_cases() -> Iterator[tuple[str, Raw, bytes]]:
    """Name, what it decodes to, and the chunk."""
    generator = np.random.default_rng(1)
    for n in (1, 127, 128, 129, 5000):
        raw = generator.normal(0, 20, n).astype(np.int8).view(np.uint8)
        yield f"{n} symbols", raw, native.rans_encode(raw)
    for block_log2 in (7, 12, 16):
        raw = generator.normal(0, 5, 20_001).astype(np.int8).view(np.uint8)
        yield f"blocks of {1 << block_log2}", raw, native.rans_encode(raw, block_log2)
    yield "one symbol", np.full(999, 7, np.uint8), native.rans_encode(np.full(999, 7, np.uint8))
    sparse = (generator.random(9000) < 0.02).astype(np.uint8) * generator.integers(0, 256, 9000, np.uint8)
    yield "nearly one symbol", sparse, native.rans_encode(sparse)


def packed_chunks(
    chunks: Sequence[bytes], sizes: Sequence[int], device: torch.device
) -> tuple[torch.Tensor, DecodePlan, torch.Tensor, torch.Tensor]:
    """Chunks one after the other on a device, with their plan, its table workspace and the error word."""
    jobs, at, out_at = [], 0, 0
    for chunk, size in zip(chunks, sizes, strict=True):
        jobs.append(chunk_job(chunk, wire.CODEC_RANS, at, out_offset=out_at, raw_bytes=size))
        at += -(-len(chunk) // 64) * 64
        out_at += size
    stored = np.zeros(at + READ_AHEAD_BYTES, np.uint8)
    for job, chunk in zip(jobs, chunks, strict=True):
        stored[job.stored_offset : job.stored_offset + len(chunk)] = np.frombuffer(chunk, np.uint8)
    plan = plan_chunks(jobs)
    tables = torch.empty(plan.table_words, dtype=torch.int32, device=device)
    error = torch.zeros(1, dtype=torch.int32, device=device)
    return torch.from_numpy(stored).to(device), plan.at(plan.records.to(device)), tables, error


def frames_of(parts: Sequence[Raw], device: torch.device) -> tuple[torch.Tensor, list[ZstdFrames]]:
    """Each part as a zstd chunk, its frames at multiples of 16."""
    pieces, jobs, at, out_at = [], [], 0, 0
    for part in parts:
        chunk = np.frombuffer(CODEC.encode(part), np.uint8)
        found = []
        for begin, end in frames(chunk, part.size).tolist():
            padded = np.zeros(-(-(end - begin) // 16) * 16, np.uint8)
            padded[: end - begin] = chunk[begin:end]
            found.append((at, end - begin))
            pieces.append(padded)
            at += padded.size
        jobs.append(ZstdFrames(np.array(found, np.int64), out_at, part.size))
        out_at += part.size
    return torch.from_numpy(np.concatenate(pieces)).to(device), jobs


def matrix_cases() -> Iterator[tuple[str, Matrix, torch.Tensor]]:
    """Name, matrix and packed codes, on the CPU."""
    torch_generator = torch.Generator().manual_seed(5)

    def values(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=torch_generator) + 0.1

    def codes(bits: int) -> torch.Tensor:
        n_bytes = _ROWS * _COLUMNS * bits // 8
        return torch.randint(0, 256, (n_bytes,), dtype=torch.uint8, generator=torch_generator)

    shape, groups = (_ROWS, _COLUMNS), _COLUMNS // 16
    outliers = _outliers(torch_generator)
    for dtype in ("i2", "i4", "i8"):
        scales = UniformScales(values(_ROWS), values(_COLUMNS))
        yield f"uniform {dtype}", Matrix(shape, dtype, scales, outliers), codes(int(dtype[1]))
    yield "uniform i8 by rows", Matrix(shape, "i8", UniformScales(values(_ROWS))), codes(8)
    order = torch.randperm(_COLUMNS, generator=torch_generator)
    by_columns = Matrix(
        shape=shape,
        code_dtype="i8",
        scales=UniformScales(values(_ROWS), values(_COLUMNS)),
        outliers=outliers,
        by_columns=True,
        order=order.int(),
        places=torch.argsort(order).int(),
    )
    yield "uniform i8 by columns", by_columns, codes(8)
    for dtype in ("u2", "u4", "u8"):
        scale, zero = (
            DeviceGroupValues(values(_ROWS, groups).half()),
            DeviceGroupValues(values(_ROWS, groups) * 4),
        )
        yield (
            f"groups {dtype}",
            Matrix(shape, dtype, GroupScales(16, scale, zero), outliers),
            codes(int(dtype[1])),
        )
    second = DeviceGroupValues(
        torch.randint(0, 8, (_ROWS, groups), dtype=torch.uint8, generator=torch_generator),
        values(-(-_ROWS // 16), -(-groups // 4)).half(),
        values(-(-_ROWS // 16), -(-groups // 4)).half(),
        (16, 4),
    )
    yield "supergroups u4", Matrix(shape, "u4", GroupScales(16, second, second), outliers), codes(4)
    minimum = GroupScales(
        16, DeviceGroupValues(values(_ROWS, groups)), None, DeviceGroupValues(values(_ROWS, groups))
    )
    yield "minimums u4", Matrix(shape, "u4", minimum), codes(4)
    tiles = DeviceGroupValues(values(-(-_ROWS // 8), groups))
    for dtype in ("f8_e4m3", "f8_e5m2"):
        levels = torch.from_numpy(np.nan_to_num(small_float_values(dtype), nan=0, posinf=1, neginf=-1))
        yield (
            f"tiles of {dtype}",
            Matrix(shape, dtype, GroupScales(16, tiles, levels=levels, rows=8), outliers),
            codes(8),
        )
    numbers = torch.randint(0, 256, (_ROWS, groups), dtype=torch.uint8, generator=torch_generator)
    scale = DeviceGroupValues(
        numbers,
        values(-(-_ROWS // 16), -(-groups // 4)),
        supergroup=(16, 4),
        minimums=values(-(-_ROWS // 16), -(-groups // 4)).half(),
        table=values(256),
    )
    yield (
        "levels u4",
        Matrix(shape, "u4", GroupScales(16, scale, levels=values(16) - 0.6), outliers),
        codes(4),
    )


def _outliers(generator: torch.Generator) -> DeviceOutliers:
    rows, columns = torch.nonzero(torch.rand(_ROWS, _COLUMNS, generator=generator) < 0.02, as_tuple=True)
    begin = torch.searchsorted(rows, torch.arange(_ROWS + 1))
    return DeviceOutliers(begin.int(), columns.int(), torch.randn(len(rows), generator=generator))


def moved(value: T, device: torch.device) -> T:
    """A dataclass with all its tensors on a device."""
    if isinstance(value, torch.Tensor):
        tensor: Any = value.to(device)
        return cast("T", tensor)
    if is_dataclass(value) and not isinstance(value, type):
        parts: dict[str, Any] = {f.name: moved(getattr(value, f.name), device) for f in fields(value)}
        return replace(value, **parts)
    return value
