"""Byte planes that are put together once all of them are there: every chunk of a group by one launch for each size.

Chunks of which a kernel decodes one plane of two need none of this (chunks.ChunkJob.low). Bytes that are not coded are
planes of elements of one byte.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

TILE = 8192
"""Elements of one program."""


class Source(IntEnum):
    """Where a plane is: decoded in scratch memory, as it was sent, or nowhere since all its bytes are alike."""

    SCRATCH = 0
    STORED = 1
    SYMBOL = 2


class Plane(NamedTuple):
    """A plane and where it begins; for SYMBOL the byte that it is full of."""

    source: Source
    at: int


class MergeJob(NamedTuple):
    """The planes of one chunk, the lowest bytes first, become `n` elements of `out` from byte `out_offset` on.

    `rotated` as the dtype says (wire.DTYPES): then every element is rotated right by one bit.
    """

    planes: tuple[Plane, ...]
    n: int
    out_offset: int
    rotated: bool


class Merges(NamedTuple):
    """Programs of one launch, which differ in nothing that is compiled: bytes of an element, rotation, their number."""

    size: int
    rotated: bool
    n_tiles: int


@dataclass(frozen=True, eq=False)
class MergePlan:
    """The work of one `prepare_merge`.

    `records` is int32, where the kernels run: for each tile its elements, where they begin in `out` (in elements), and
    of each plane the source and where the tile's bytes begin there. Those of one launch follow each other.
    """

    jobs: tuple[MergeJob, ...]
    records: torch.Tensor
    launches: tuple[Merges, ...]

    def at(self, records: torch.Tensor) -> "MergePlan":
        """The same plan with its records elsewhere; int32 of the same length."""
        return replace(self, records=records)


def record_words(size: int) -> int:
    """int32 words of the record of a tile of elements of `size` bytes."""
    return 2 + 2 * size


def plan_merges(jobs: Sequence[MergeJob]) -> MergePlan:
    """Lay out jobs; `records` is a new tensor on the CPU.

    ValueError: elements of another size, or not at a multiple of it, or behind what int32 can hold.
    """
    kinds: dict[tuple[int, bool], list[NDArray[np.int64]]] = {}
    for job in jobs:
        size = len(job.planes)
        if size not in (1, 2, 4, 8) or job.out_offset % size:
            raise ValueError(f"elements of {size} bytes cannot begin at {job.out_offset}")
        if max(job.out_offset, *(plane.at for plane in job.planes)) + size * job.n > np.iinfo(np.int32).max:
            raise ValueError("a launch takes less than 2 GiB of stored and of decoded bytes")
        first = np.arange(0, job.n, TILE)
        columns = [np.minimum(job.n - first, TILE), job.out_offset // size + first]
        for source, at in job.planes:
            columns += [np.full_like(first, source), at + first * (source is not Source.SYMBOL)]
        kinds.setdefault((size, job.rotated), []).append(np.stack(columns, 1))
    tiles = [np.concatenate(own) for own in kinds.values()]
    records = np.concatenate([np.empty(0), *(own.reshape(-1) for own in tiles)]).astype(np.int32)
    return MergePlan(
        jobs=tuple(jobs),
        records=torch.from_numpy(records),
        launches=tuple(Merges(*kind, n_tiles=len(own)) for kind, own in zip(kinds, tiles, strict=True)),
    )
