"""Elements wider than a byte: beside stored low bytes as they are decoded, and planes of every kind by one launch."""

import numpy as np
import pytest
import torch
from staged import rans_chunks

from spqfmt import wire
from spqfmt.errors import CorruptError
from spqfmt.kernels import native
from spqfmt.kernels.device import READ_AHEAD_BYTES, chunk_job, plan_chunks, raise_fault
from spqfmt.kernels.device.merging import TILE, MergeJob, Plane, Source, plan_merges
from spqfmt.loaders.device.planes import PartPlace, put_together
from spqfmt.loaders.device.shipping import Jobs
from spqfmt.records import Chunk, Chunks, PlaneChunk, Stream, TensorRecord
from spqfmt.residency.parts import cut

RNG = np.random.default_rng(20)


def floats(n):
    """bfloat16 as bytes."""
    return torch.randn(n, generator=torch.Generator().manual_seed(n)).bfloat16().view(torch.uint8).numpy()


def planes_of(raw, size, rotated):
    planes = np.empty_like(raw)
    native.split_planes(raw, size, rotated, planes)
    return planes.reshape(size, -1)


class Sent:
    """Chunks at multiples of 64, and what is decoded of them."""

    def __init__(self):
        self.bytes = bytearray()

    def add(self, chunk):
        self.bytes += bytes(-len(self.bytes) % 64)
        at = len(self.bytes)
        self.bytes += bytes(chunk)
        return at

    @property
    def tensor(self):
        return torch.from_numpy(
            np.frombuffer(bytes(self.bytes) + b"\xa5" * READ_AHEAD_BYTES, np.uint8).copy()
        )


def beside(sent, raw, block_log2, to):
    """The job that puts high bytes beside low ones, which are sent before or behind."""
    low, high = planes_of(raw, 2, True)
    [(chunk, _, n)] = rans_chunks([high], block_log2)
    if to % 4:
        at = sent.add(chunk)
        low_at = sent.add(low)
    else:
        low_at = sent.add(low)
        at = sent.add(chunk)
    job = chunk_job(chunk, wire.CODEC_RANS, at, to, n)
    return type(job)(**vars(job) | {"low": low_at})


def decode(kernels, sent, jobs, n_out):
    plan = plan_chunks(jobs)
    out = torch.full((n_out + 8,), 0xEE, dtype=torch.uint8)
    error = torch.zeros(1, dtype=torch.int32)
    kernels.decode_chunks(sent.tensor, plan, out, torch.empty(plan.table_words, dtype=torch.int32), error)
    assert bytes(out[n_out:]) == b"\xee" * 8
    return plan, out[:n_out].numpy(), error.item()


def test_high_bytes_are_put_beside_low_ones_with_bytes_in_the_same_plan(kernels):
    raws = [floats(1000), floats(513), floats(7)]
    codes = RNG.normal(0, 9, 700).astype(np.int8).view(np.uint8)
    sent, jobs, to = Sent(), [], 0
    for raw in raws:
        jobs.append(beside(sent, raw, 8, to))
        to += raw.size
    [(chunk, codec, n)] = rans_chunks([codes], 8)
    jobs.insert(1, chunk_job(chunk, codec, sent.add(chunk), to, n))
    plan, found, error = decode(kernels, sent, jobs, to + n)
    assert error == 0
    assert found.tobytes() == b"".join(raw.tobytes() for raw in raws) + codes.tobytes()
    # 512 symbols of the second begin at a multiple of 4 elements; 1 symbol, and the 7, are written one by one.
    assert min(plan.n_word_blocks, plan.n_pair_word_blocks, plan.n_pair_blocks) > 0


def test_elements_that_begin_anywhere_are_written_one_by_one(kernels):
    raw, sent = floats(260), Sent()
    plan, found, error = decode(kernels, sent, [beside(sent, raw, 7, 6)], 6 + raw.size)
    assert (plan.n_pair_word_blocks, error) == (0, 0)
    assert found[6:].tobytes() == raw.tobytes()


def test_a_damaged_block_of_high_bytes_is_told(kernels):
    sent = Sent()
    job = beside(sent, floats(600), 10, 0)
    sent.bytes[-4:] = b"\x12\x34\x56\x78"
    _, _, error = decode(kernels, sent, [job], 1200)
    with pytest.raises(CorruptError):
        raise_fault(error)


def test_low_bytes_that_are_not_all_there_are_refused(kernels):
    sent = Sent()
    job = beside(sent, floats(600), 10, 0)
    short = type(job)(**vars(job) | {"low": len(sent.bytes) + READ_AHEAD_BYTES - 600})
    with pytest.raises(ValueError, match="low bytes pass the end"):
        decode(kernels, sent, [short], 1200)


@pytest.mark.parametrize(("size", "rotated"), [(1, False), (2, True), (4, True), (8, False)])
def test_planes_of_every_source_are_merged_by_one_launch(kernels, size, rotated):
    sent, scratch, jobs, expected, to = Sent(), bytearray(b"\x11" * 3), [], b"", 0
    for n in (5, TILE + 3, 64):
        own = RNG.integers(0, 256, (size, n), np.uint8)
        own[-1] = 77
        sources = []
        for number, plane in enumerate(own):
            if number == size - 1 and n != 5:
                sources.append(Plane(Source.SYMBOL, 77))
            elif number % 2:
                sources.append(Plane(Source.SCRATCH, len(scratch)))
                scratch += plane.tobytes()
            else:
                sources.append(Plane(Source.STORED, sent.add(plane)))
        jobs.append(MergeJob(tuple(sources), n, to, rotated))
        raw = np.empty(own.size, np.uint8)
        if size > 1:
            native.merge_planes(own.reshape(-1), size, rotated, raw)
        else:
            raw[:] = own[0]
        expected += raw.tobytes() + bytes(-raw.size % size)
        to += raw.size
    plan = plan_merges(jobs)
    assert [launch.n_tiles for launch in plan.launches] == [4]
    out = torch.full((to + 8,), 0xEE, dtype=torch.uint8)
    kernels.prepare_merge(sent.tensor, torch.frombuffer(scratch, dtype=torch.uint8), plan, out)()
    assert out.numpy().tobytes() == expected + b"\xee" * 8
    with pytest.raises(ValueError, match="pass the end of out"):
        kernels.prepare_merge(sent.tensor, torch.frombuffer(scratch, dtype=torch.uint8), plan, out[: to - 1])
    with pytest.raises(ValueError, match="planes pass the end"):
        kernels.prepare_merge(sent.tensor[:4], torch.zeros(4, dtype=torch.uint8), plan, out)


def test_elements_that_do_not_fit_a_launch_are_refused():
    sources = (Plane(Source.STORED, 0),) * 2
    with pytest.raises(ValueError, match="cannot begin at 1"):
        plan_merges([MergeJob(sources, 4, 1, rotated=True)])
    with pytest.raises(ValueError, match="2 GiB"):
        plan_merges([MergeJob(sources, 4, 2**31 - 8, rotated=True)])
    with pytest.raises(ValueError, match="of 3 bytes"):
        plan_merges([MergeJob(sources[:1] * 3, 4, 0, rotated=False)])


RANS, RAW = wire.CODEC_RANS, wire.CODEC_RAW


@pytest.mark.parametrize(
    ("codecs", "symbols", "expected"),
    [
        ((RAW, RANS), 5, (1, 0, 0)),  # beside
        ((RAW, RAW), 5, (0, 0, 1)),
        ((RANS, RANS), 5, (0, 2, 1)),
        ((RAW, RANS), 1, (0, 0, 1)),  # all high bytes are alike
    ],
    ids=["beside", "stored", "both coded", "one symbol"],
)
def test_what_becomes_of_two_planes(kernels, codecs, symbols, expected):
    """The launches that a part's chunks take, and that they make its elements."""
    n, sent, at, rows = 300, Sent(), 0, []
    raw = np.stack((RNG.integers(0, 9, n, np.uint8), RNG.integers(0, symbols, n, np.uint8)))
    jobs = Jobs([], [])
    for number, codec in enumerate(codecs):
        chunk = raw[number].tobytes() if codec == RAW else native.rans_encode(raw[number], 8)
        at = sent.add(chunk)
        jobs.chunks.append(chunk_job(chunk, codec, at, number * n, n))
        rows.append(PlaneChunk(offset=at, stored_bytes=len(chunk), raw_bytes=n, codec=codec, crc32=0))
    stream = Stream("values", "bf16", n, Chunks.of([Chunk(0, n, tuple(rows))]))
    [part] = cut(TensorRecord("w", (3, 100), "bf16", "dense", "", {}, (stream,)))
    assert bool(part.scratch_bytes) is (codecs == (RANS, RANS))
    direct, planes, merges = Jobs([], []), Jobs([], []), []
    put_together(part, jobs, PartPlace(0, 16, 4), direct, planes, merges)
    assert (len(direct.chunks), len(planes.chunks), len(merges)) == expected
    out, scratch = torch.zeros(16 + 2 * n, dtype=torch.uint8), torch.zeros(4 + 2 * n, dtype=torch.uint8)
    error = torch.zeros(1, dtype=torch.int32)
    for found, to in ((direct, out), (planes, scratch)):
        plan = plan_chunks(found.chunks)
        kernels.decode_chunks(sent.tensor, plan, to, torch.empty(plan.table_words, dtype=torch.int32), error)
    kernels.prepare_merge(sent.tensor, scratch, plan_merges(merges), out)()
    wanted = np.empty(2 * n, np.uint8)
    native.merge_planes(raw.reshape(-1), 2, True, wanted)
    assert out[16:].numpy().tobytes() == wanted.tobytes()
    assert error.item() == 0
