"""Products straight from BF16 weights on the emulator: each weight to the bit, sums in the stated order."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import F32, Case, in_order, ints, product
from emulated import EmulatedDriver
from numpy.typing import NDArray

from spqfmt import wire
from spqfmt.errors import CorruptError
from spqfmt.kernels import native
from spqfmt.kernels.choose import kernels_for
from spqfmt.kernels.device import READ_AHEAD_BYTES, ChunkJob, DeviceFloats, Matrix, UniformScales
from spqfmt.kernels.device.chunks import chunk_job
from spqfmt.kernels.device.fusing import Kind, kind_of, plan_fused
from spqfmt.kernels.torch_rans import raise_fault


def drawn(shape: tuple[int, int]) -> NDArray[np.uint16]:
    """Bits of weights as models have them."""
    values = np.random.default_rng(shape[0] * shape[1]).normal(0, 0.02, shape).astype(F32)
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def case(bits: NDArray[np.uint16], *, log2: int = 9, chunk_rows: int = 0) -> Case:
    """Weights as they are stored: in chunks of so many rows, low bytes before the high ones, which are coded."""
    n_rows, n_columns = bits.shape
    jobs: list[ChunkJob] = []
    sent, step = bytearray(64), chunk_rows or n_rows
    for first in range(0, n_rows, step):
        own = bits[first : first + step].copy()
        planes = np.empty((2, own.size), np.uint8)
        native.split_planes(own, 2, True, planes)
        low = len(sent)
        sent += planes[0].tobytes() + bytes(-own.size % 64)
        chunk = native.rans_encode(planes[1], log2)
        out = 2 * first * n_columns
        job = chunk_job(chunk, wire.CODEC_RANS, len(sent), out_offset=out, raw_bytes=own.size)
        jobs.append(replace(job, low=low))
        sent += chunk + bytes(-len(chunk) % 64)
    plan = plan_fused(jobs, 1, n_columns, range(n_rows))
    assert plan is not None
    stored = torch.frombuffer(sent + bytes(READ_AHEAD_BYTES), dtype=torch.uint8)
    weights = (bits.astype(np.uint32) << 16).view(F32)
    return Case(DeviceFloats((n_rows, n_columns)), weights, stored, plan)


@pytest.mark.parametrize(
    ("shape", "log2", "chunk_rows"),
    [
        ((4, 128), 7, 0),  # a row is a turn and a block
        ((7, 132), 7, 0),  # a row ends in nearly every turn, elsewhere each time
        ((9, 576), 11, 4),  # blocks of several rows; three chunks, the last of one row
        ((40, 128), 7, 0),  # more blocks than a program has
    ],
)
@pytest.mark.parametrize("n_tokens", [1, 3, 8])
def test_rows_blocks_and_turns_end_anywhere(
    driver: EmulatedDriver, shape: tuple[int, int], log2: int, chunk_rows: int, n_tokens: int
) -> None:
    numbers = np.random.default_rng(n_tokens).integers(-9, 10, shape).astype(F32)
    given = case((numbers.view(np.uint32) >> 16).astype(np.uint16), log2=log2, chunk_rows=chunk_rows)
    driver.seed = log2 + n_tokens
    x, bias = ints(n_tokens, shape[1]), torch.arange(shape[0]).bfloat16()
    found, fault = product(driver, given, x, bias)
    expected = x.double() @ torch.from_numpy(numbers).double().t() + bias.double()
    assert fault == 0
    assert torch.equal(found, expected.bfloat16())


def test_every_weight_there_is(driver: EmulatedDriver) -> None:
    """All finite numbers of BF16, denormal ones and both zeros among them: each comes out as it is."""
    bits = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16).reshape(-1, 128)
    is_finite = (bits >> 7 & 0xFF) < 0xFF
    bits = np.where(is_finite, bits, 0x8000 | bits & 0x7F).astype(np.uint16)
    # as many rows are enough, with every exponent, sign and mantissa
    bits = np.concatenate((bits[::5], bits[-1:]))
    given = case(np.ascontiguousarray(bits), log2=14)
    for columns in (range(8), range(120, 128)):
        x = torch.zeros(8, 128).bfloat16()
        x[torch.arange(8), torch.tensor(list(columns))] = 1
        found, fault = product(driver, given, x)
        assert fault == 0
        assert np.array_equal(found.float().numpy(), given.codes[:, columns.start : columns.stop].T)


def test_sums_in_the_stated_order(driver: EmulatedDriver) -> None:
    given = case(drawn((5, 576)))
    x = torch.randn(2, 576, generator=torch.Generator().manual_seed(4)).bfloat16()
    expected = in_order(given.codes.astype(F32), x.float().numpy(), 512)
    for seed in (1, 2):
        driver.seed = seed
        found, _ = product(driver, given, x)
        assert torch.equal(found, torch.from_numpy(expected).bfloat16())


def test_the_plain_twin_says_the_same(driver: EmulatedDriver) -> None:
    given = case(drawn((6, 256)), chunk_rows=4)
    x = torch.randn(3, 256, generator=torch.Generator().manual_seed(5)).bfloat16()
    sums = torch.zeros(given.plan.sum_bytes(8), dtype=torch.uint8)
    twin = kernels_for(torch.device("cpu"), "torch").prepare_fused(
        given.stored, given.plan, given.matrix, x.dtype, bias=None, sums=sums, is_one=False
    )
    assert twin is not None
    y = torch.zeros(3, 6).bfloat16()
    twin(x, given.stored, y, 3)
    found, _ = product(driver, given, x)
    assert torch.allclose(y, found, rtol=2**-7, atol=1e-6)


def test_damaged_blocks_end_and_are_told(driver: EmulatedDriver) -> None:
    given = case(drawn((9, 256)))
    x, refused, generator = ints(1, 256), 0, np.random.default_rng(6)
    [job] = given.plan.jobs
    assert job.header is not None
    first, end = int(job.header.begins[0]) + job.stored_offset, job.stored_offset + job.stored_bytes
    for _ in range(20):
        stored = given.stored.clone()
        stored[int(generator.integers(first, end))] ^= 1 << int(generator.integers(8))
        _, fault = product(driver, replace(given, stored=stored), x)
        try:
            native.rans_decode(bytes(stored[job.stored_offset : end].numpy()), np.empty(9 * 256, np.uint8))
        except CorruptError:
            refused += 1
            with pytest.raises(CorruptError):
                raise_fault(fault)
        else:
            assert fault == 0
    assert refused


def test_what_has_no_kernel() -> None:
    assert kind_of(DeviceFloats((4, 128))) is Kind.BFLOATS
    assert kind_of(DeviceFloats((4, 124))) is None
    assert kind_of(DeviceFloats((4, 130))) is None
    given = case(drawn((4, 128)))
    [job] = given.plan.jobs
    assert plan_fused([replace(job, header=None, codec=wire.CODEC_RAW)], 1, 128, range(4)) is None
    kernels, sums = kernels_for(torch.device("cpu"), "torch"), torch.zeros(given.plan.n_slots)
    halves = kernels.prepare_fused(
        given.stored, given.plan, given.matrix, torch.float16, bias=None, sums=sums, is_one=True
    )
    assert halves is None
    codes = Matrix((4, 128), "i8", UniformScales(torch.ones(4)))
    with pytest.raises(ValueError, match="the plan is one of other weights"):
        kernels.prepare_fused(
            given.stored, given.plan, codes, torch.bfloat16, bias=None, sums=sums, is_one=True
        )
