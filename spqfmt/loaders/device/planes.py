"""What becomes of a part's planes: decoded to their place, put together as they are decoded, or behind that."""

from dataclasses import replace
from typing import NamedTuple

from spqfmt import wire
from spqfmt.kernels.device import ChunkJob
from spqfmt.kernels.device.merging import MergeJob, Plane, Source
from spqfmt.kernels.nvcomp import ZstdFrames
from spqfmt.loaders.device.shipping import Jobs
from spqfmt.residency.parts import Part


class PartPlace(NamedTuple):
    """Where a part's bytes begin: of what is sent, of what is decoded, of the scratch memory."""

    sent: int
    decoded: int
    scratch: int


def put_together(
    part: Part, jobs: Jobs, place: PartPlace, direct: Jobs, planes: Jobs, merges: list[MergeJob]
) -> None:
    """Add what makes elements of a part: to `direct` what is decoded to its place, else to `planes` and `merges`.

    Targets of `jobs` are counted from the part's first byte.
    """
    dtype = wire.DTYPES[part.dtype]
    size = max(1, dtype.bits // 8)
    given: list[ChunkJob | ZstdFrames] = [*jobs.chunks, *jobs.zstd]
    by_target = {job.out_offset: job for job in given}
    if size == 1:
        _bytes(jobs, place, direct, merges)
    for merge in part.merges:
        n = merge.n_bytes // size
        if not n:
            continue
        own = [by_target[merge.scratch_offset + plane * n] for plane in range(size)]
        to = place.decoded + merge.out_offset
        beside = _beside(own, to) if dtype.rotate and not part.scratch_bytes else None
        if beside is not None:
            direct.chunks.append(beside)
            continue
        sources = tuple(_sent(job, place, planes) for job in own)
        merges.append(MergeJob(sources, n, to, dtype.rotate))


def with_low_bytes(part: Part, jobs: Jobs) -> list[ChunkJob] | None:
    """What decodes a part of elements of two bytes to its place, each chunk's planes at once; None where that does not.

    Targets are counted from the part's first byte.
    """
    if part.scratch_bytes:
        return None
    by_target = {job.out_offset: job for job in jobs.chunks}
    found = []
    for merge in filter(lambda merge: merge.n_bytes, part.merges):
        low, high = (by_target[merge.scratch_offset + plane * merge.n_bytes // 2] for plane in range(2))
        beside = _beside([low, high], merge.out_offset)
        if beside is None:
            return None
        found.append(beside)
    return found


def _bytes(jobs: Jobs, place: PartPlace, direct: Jobs, merges: list[MergeJob]) -> None:
    for job in jobs.chunks:
        to, plane = place.decoded + job.out_offset, _plain(job)
        if plane is None:
            direct.chunks.append(replace(job, out_offset=to))
        else:
            merges.append(MergeJob((plane,), job.raw_bytes, to, rotated=False))
    direct.zstd.extend(replace(job, out_offset=place.decoded + job.out_offset) for job in jobs.zstd)


def _plain(job: ChunkJob | ZstdFrames) -> Plane | None:
    """A plane that needs no decoding."""
    if isinstance(job, ZstdFrames):
        return None
    if job.header is None:
        return Plane(Source.STORED, job.stored_offset)
    return None if job.header.symbol is None else Plane(Source.SYMBOL, job.header.symbol)


def _beside(own: list[ChunkJob | ZstdFrames], to: int) -> ChunkJob | None:
    """The high bytes' job that puts them beside the low ones; None where they have no blocks."""
    low, high = own
    assert isinstance(low, ChunkJob)
    assert isinstance(high, ChunkJob)
    if high.header is None or high.header.symbol is not None:
        return None
    return replace(high, out_offset=to, low=low.stored_offset)


def _sent(job: ChunkJob | ZstdFrames, place: PartPlace, planes: Jobs) -> Plane:
    """Where a plane is when all are there; what decodes it to scratch memory is added to `planes`."""
    plain = _plain(job)
    if plain is not None:
        return plain
    at = place.scratch + job.out_offset
    if isinstance(job, ChunkJob):
        planes.chunks.append(replace(job, out_offset=at))
    else:
        planes.zstd.append(replace(job, out_offset=at))
    return Plane(Source.SCRATCH, at)
