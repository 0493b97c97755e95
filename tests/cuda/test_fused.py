"""The fused product on the emulator, bit for bit: codes as the native core decodes them, sums in the stated order."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from cases import F32, Case, exact, in_order, ints, product
from emulated import EmulatedDriver

from spqfmt import wire
from spqfmt.errors import CorruptError
from spqfmt.kernels import native
from spqfmt.kernels.device import (
    READ_AHEAD_BYTES,
    DeviceGroupValues,
    DeviceOutliers,
    GroupScales,
    Matrix,
    fusing,
)
from spqfmt.kernels.device.chunks import chunk_job
from spqfmt.kernels.device.fusing import Kind, kind_of, plan_fused, put_changes
from spqfmt.kernels.device.matrix import UniformScales
from spqfmt.kernels.torch_rans import raise_fault


def case(
    shape: tuple[int, int],
    scales: Any,
    code_dtype: str = "i8",
    *,
    log2: int = 9,
    chunk_rows: int = 0,
    **more: Any,
) -> Case:
    """Codes drawn at random, encoded natively in chunks of so many rows."""
    n_rows, n_columns = shape
    generator = np.random.default_rng(n_rows * n_columns)
    matrix = Matrix(shape, code_dtype, scales, **more)
    kind = kind_of(matrix)
    assert kind is not None
    packed = generator.normal(0, 30, (n_rows, n_columns // kind.per_symbol)).astype(np.int8).view(np.uint8)
    numbers = packed.view(np.int8 if code_dtype[0] == "i" else np.uint8).astype(np.int64)
    if kind is Kind.GROUPS_4:
        halves = np.stack((packed & 15, packed >> 4), -1).reshape(shape).astype(np.int64)
        numbers = (halves ^ 8) - 8 if code_dtype == "i4" else halves
    jobs, sent, step = [], bytearray(), chunk_rows or n_rows
    for first in range(0, n_rows, step):
        raw = packed[first : first + step].reshape(-1)
        chunk = native.rans_encode(raw, log2)
        sent += bytes(-len(sent) % 64)
        out = first * packed.shape[1]
        jobs.append(chunk_job(chunk, wire.CODEC_RANS, len(sent), out_offset=out, raw_bytes=raw.size))
        sent += chunk
    plan = plan_fused(jobs, kind.per_symbol, n_columns, range(n_rows))
    assert plan is not None
    return Case(matrix, numbers, torch.frombuffer(sent + bytes(READ_AHEAD_BYTES), dtype=torch.uint8), plan)


def uniform(n_rows: int, n_columns: int | None = None) -> UniformScales:
    column = None if n_columns is None else torch.tensor([1.0, 0.5, 2.0, 0.25]).repeat(n_columns // 4)
    return UniformScales(torch.tensor([2.0, 0.5, 1.0, 4.0]).repeat(n_rows)[:n_rows], column)


@pytest.mark.parametrize(
    ("shape", "log2", "chunk_rows"),
    [
        ((4, 128), 7, 0),  # a row is a turn and a block
        ((5, 576), 9, 0),  # rows and blocks end inside of a turn
        ((7, 132), 7, 0),  # a row ends in nearly every turn, elsewhere each time
        ((3, 1024), 8, 0),  # a row of several blocks
        ((9, 256), 12, 4),  # blocks of several rows; three chunks, the last of one row
        ((40, 128), 7, 0),  # more blocks than a program has
    ],
)
@pytest.mark.parametrize("n_tokens", [1, 3, 8])
def test_rows_blocks_and_turns_end_anywhere(
    driver: EmulatedDriver, shape: tuple[int, int], log2: int, chunk_rows: int, n_tokens: int
) -> None:
    given = case(shape, uniform(shape[0]), log2=log2, chunk_rows=chunk_rows)
    x = ints(n_tokens, shape[1])
    driver.seed = log2 + n_tokens
    found, fault = product(driver, given, x)
    scales = given.matrix.scales
    assert isinstance(scales, UniformScales)
    weights = given.codes * scales.row.double().numpy()[:, None]
    assert fault == 0
    assert torch.equal(found, exact(given, weights, x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n_tokens", [1, 5])
def test_column_scales_outliers_and_bias(
    driver: EmulatedDriver, dtype: torch.dtype, n_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fusing, "_CHANGES_AT_ONCE", 50)
    shape = 6, 576
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.1
    mask[2] = False
    rows, columns = torch.nonzero(mask, as_tuple=True)
    begin = torch.searchsorted(rows, torch.arange(shape[0] + 1)).int()
    values = torch.arange(len(rows)).float() % 7
    outliers = DeviceOutliers(begin, columns.int(), values, torch.empty(len(rows)))
    given = case(shape, uniform(*shape), outliers=outliers)
    scales = given.matrix.scales
    assert isinstance(scales, UniformScales)
    assert scales.column is not None
    weights = given.codes * scales.row.double().numpy()[:, None] * scales.column.double().numpy()
    put_changes(
        torch.from_numpy(given.codes).to(torch.int8).view(torch.uint8).view(-1), given.matrix, range(shape[0])
    )
    assert outliers.changes is not None
    assert torch.equal(outliers.changes, values - torch.from_numpy(weights)[rows, columns].float())
    weights[rows.numpy(), columns.numpy()] = values.double().numpy()
    x, bias = ints(n_tokens, shape[1], dtype), torch.arange(shape[0]).to(dtype) / 2
    found, fault = product(driver, given, x, bias)
    expected = (x.double() @ torch.from_numpy(weights).t() + bias.double()).to(dtype)
    assert fault == 0
    assert torch.equal(found, expected)


@pytest.mark.parametrize("code_dtype", ["i8", "u8", "i4", "u4"])
@pytest.mark.parametrize("offset", ["none", "zero_point", "minimum"])
def test_groups(driver: EmulatedDriver, code_dtype: str, offset: str) -> None:
    shape, size = (5, 640), 32 if code_dtype == "u4" else 1024
    n_groups = -(-shape[1] // size)
    generator = torch.Generator().manual_seed(2)
    scale = (2.0 ** torch.randint(-2, 3, (shape[0], n_groups), generator=generator)).half()
    values = torch.randint(0, 16, (shape[0], n_groups), generator=generator)
    kinds = {
        "none": {},
        "zero_point": {"zero_point": DeviceGroupValues(values.to(torch.uint8))},
        "minimum": {"minimum": DeviceGroupValues(values.bfloat16())},
    }
    given = case(shape, GroupScales(size, DeviceGroupValues(scale), **kinds[offset]), code_dtype)
    spread_scale, spread = (v.double().numpy().repeat(size, 1)[:, : shape[1]] for v in (scale, values))
    weights = spread_scale * (given.codes - (spread if offset == "zero_point" else 0))
    weights = weights - (spread if offset == "minimum" else 0)
    for n_tokens in (1, 2):
        x = ints(n_tokens, shape[1])
        found, fault = product(driver, given, x)
        assert fault == 0
        assert torch.equal(found, exact(given, weights, x))


def test_sums_in_the_stated_order(driver: EmulatedDriver) -> None:
    shape = 5, 576
    row = torch.rand(5, generator=torch.Generator().manual_seed(3)) + 0.1
    given = case(shape, UniformScales(row))
    x = torch.randn(2, shape[1], generator=torch.Generator().manual_seed(4)).bfloat16()
    expected = in_order(given.codes.astype(F32), x.float().numpy(), 512) * row.numpy()
    for seed in (1, 2, 3):
        driver.seed = seed
        found, _ = product(driver, given, x)
        assert torch.equal(found, torch.from_numpy(expected).bfloat16())


def test_damaged_blocks_end_and_are_told(driver: EmulatedDriver) -> None:
    given = case((9, 256), uniform(9), log2=9)
    x, refused, generator = ints(1, 256), 0, np.random.default_rng(5)
    begin = int(given.plan.jobs[0].header.begins[0])  # type: ignore[union-attr]
    for _ in range(30):
        stored = given.stored.clone()
        at = int(generator.integers(begin, given.plan.jobs[0].stored_bytes))
        stored[at] ^= 1 << int(generator.integers(8))
        damaged = bytes(stored[: given.plan.jobs[0].stored_bytes].numpy())
        _, fault = product(driver, replace(given, stored=stored), x)
        try:
            native.rans_decode(damaged, np.empty(9 * 256, np.uint8))
        except CorruptError:
            refused += 1
            with pytest.raises(CorruptError):
                raise_fault(fault)
        else:
            assert fault == 0
    assert refused


def test_what_has_no_kernel() -> None:
    scales = UniformScales(torch.ones(4))
    assert kind_of(Matrix((4, 128), "i8", scales)) is Kind.ROWS_8
    assert kind_of(Matrix((4, 124), "i8", scales)) is None
    assert kind_of(Matrix((4, 130), "i8", scales)) is None
    assert kind_of(Matrix((4, 128), "i4", scales)) is None
    assert kind_of(Matrix((4, 128), "i8", scales, by_columns=True)) is None
    groups = DeviceGroupValues(torch.ones(4, 3))
    assert kind_of(Matrix((4, 144), "i8", GroupScales(48, groups))) is None
    assert kind_of(Matrix((4, 144), "i8", GroupScales(48, groups, rows=2))) is None
