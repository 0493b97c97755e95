"""Parts that go to a device together: their bytes one after the other, and behind them the records of all.

What is decoded by one launch is every part whose elements have one plane, or of two the low one as it is: the high one
is decoded to its place beside that. Planes of all others are decoded to scratch memory by another launch, and put
together at their place by one more.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from spqfmt.cached import cached_property
from spqfmt.codecs.base import Bytes
from spqfmt.errors import FormatError, UnsupportedError
from spqfmt.kernels.device import READ_AHEAD_BYTES, ChunkJob, DecodePlan, plan_chunks
from spqfmt.kernels.device.fusing import FusedPlan
from spqfmt.kernels.device.merging import MergeJob, MergePlan, plan_merges
from spqfmt.kernels.device.unfolding import UnfoldPlan, plan_paths
from spqfmt.kernels.nvcomp import ZstdFrames
from spqfmt.loaders.device.fused import plan_of_parts
from spqfmt.loaders.device.planes import PartPlace, put_together, with_low_bytes
from spqfmt.loaders.device.shipping import LEAST_BLOCK_BYTES, Jobs, Shipment
from spqfmt.residency.groups import ALIGNMENT, aligned
from spqfmt.residency.parts import Part


class Decoding(NamedTuple):
    """What decodes chunks to one target: a plan for the kernels, and frames for nvCOMP."""

    plan: DecodePlan
    zstd: tuple[ZstdFrames, ...]


class Decodings(NamedTuple):
    """What is decoded to its place, what to scratch memory, how that is put together, and path codes made codes.

    `fused`: what may be multiplied without being decoded, by tensor and first row.
    """

    direct: Decoding
    planes: Decoding
    merges: MergePlan
    paths: UnfoldPlan
    fused: Mapping[tuple[str, int], FusedPlan]

    @property
    def records(self) -> tuple[torch.Tensor, ...]:
        """int32 records of all of it, in the order in which they are sent."""
        of_decoding = (
            self.direct.plan.records,
            self.planes.plan.records,
            self.merges.records,
            self.paths.records,
        )
        return (*of_decoding, *(plan.records for plan in self.fused.values()))


class GroupShipment:
    """Parts of one file, in order."""

    def __init__(self, shipments: Sequence[Shipment]) -> None:
        self.shipments = tuple(shipments)
        parts = [shipment.part for shipment in shipments]
        sizes = (
            [aligned(shipment.payload_bytes) for shipment in shipments],
            [aligned(part.decoded_bytes) for part in parts],
            [aligned(part.scratch_bytes) for part in parts],
        )
        begins = [list(accumulate(size, initial=0)) for size in sizes]
        self.places = tuple(map(PartPlace, *(begin[:-1] for begin in begins)))
        self.payload_bytes, self.decoded_bytes, self.scratch_bytes = (begin[-1] for begin in begins)
        self.decodings: Decodings | None = None
        """There once headers were seen."""

    @classmethod
    def of(cls, parts: Sequence[Part], *, zstd_on_device: bool) -> "GroupShipment":
        """The parts as they are sent to a device that decodes zstd frames itself, or does not."""
        return cls([Shipment(part, zstd_on_device=zstd_on_device) for part in parts])

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts, in order."""
        return tuple(shipment.part for shipment in self.shipments)

    @property
    def reader_number(self) -> int:
        """The file that all are of."""
        return self.shipments[0].part.reader_number

    @cached_property
    def name(self) -> str:
        """The part's name, or the first one's and the last one's."""
        first, last = self.parts[0].name, self.parts[-1].name
        return first if len(self.shipments) == 1 else f"{first} to {last}"

    @cached_property
    def as_stored(self) -> bool:
        """Whether the bytes that are sent are the stored ones."""
        return all(shipment.as_stored for shipment in self.shipments)

    @cached_property
    def records_offset(self) -> int:
        """Where the records begin, behind what a damaged block may be read ahead."""
        return aligned(self.payload_bytes + READ_AHEAD_BYTES)

    @cached_property
    def n_bytes(self) -> int:
        """All that is sent, records included."""
        n_words = sum(shipment.record_words for shipment in self.shipments)
        return self.records_offset + (aligned(4 * n_words) + ALIGNMENT if n_words else 0)

    @cached_property
    def read_amounts(self) -> dict[str, int]:
        """What reading all of it takes (DeviceRates)."""
        return _summed([dict(shipment.load.read) for shipment in self.shipments])

    @cached_property
    def decode_amounts(self) -> dict[str, int]:
        """What decoding all of it takes (DeviceRates)."""
        return _summed([dict(shipment.load.decode) for shipment in self.shipments])

    @cached_property
    def table_bytes(self) -> int:
        """Memory of the decode tables."""
        return sum(shipment.load.table_bytes for shipment in self.shipments)

    def fill(self, number: int, stored: Bytes, out: Bytes, path: Path) -> Jobs:
        """Put part `number` into `out`, all that is sent, as Shipment.fill says."""
        shipment, place = self.shipments[number], self.places[number]
        target = out[place.sent : place.sent + shipment.payload_bytes]
        return shipment.fill(stored, target, path, at=place.sent, known=self.decodings is not None)

    def finish(self, jobs: Sequence[Jobs], out: Bytes, path: Path) -> None:
        """Put the records behind the parts, whose `jobs` these are unless they were known already."""
        if self.decodings is None:
            self.decodings = self._planned(jobs)
        at = self.records_offset
        for found in self.decodings.records:
            records = found.numpy().view(np.uint8)
            if at + records.size > self.n_bytes:
                self.decodings = None
                raise UnsupportedError(
                    f"{path}: {self.name}: its rans blocks are smaller than {LEAST_BLOCK_BYTES} bytes, which a device "
                    "does not take",
                    "small rans blocks on a device",
                )
            out[at : at + records.size] = records
            at += aligned(records.size)

    def _planned(self, jobs: Sequence[Jobs]) -> Decodings:
        direct, planes, merges = Jobs([], []), Jobs([], []), list[MergeJob]()
        for own, shipment, place in zip(jobs, self.shipments, self.places, strict=True):
            put_together(shipment.part, own, place, direct=direct, planes=planes, merges=merges)
        one, other = (Decoding(plan_chunks(found.chunks), tuple(found.zstd)) for found in (direct, planes))
        paths = [
            job for own, at in zip(self.shipments, self.places, strict=True) for job in own.paths(at.decoded)
        ]
        return Decodings(one, other, plan_merges(merges), plan_paths(paths), fused=self._fused(jobs))

    def _fused(self, jobs: Sequence[Jobs]) -> dict[tuple[str, int], FusedPlan]:
        """Products of the runs of parts of one tensor that are decoded side by side."""
        runs: list[list[int]] = []
        for number, (part, place) in enumerate(zip(self.parts, self.places, strict=True)):
            before, at = (self.parts[number - 1], self.places[number - 1]) if number else (None, place)
            is_next = before is not None and at.decoded + before.decoded_bytes == place.decoded
            if is_next and before is not None and before.record is part.record:
                runs[-1].append(number)
            else:
                runs.append([number])
        found = {}
        for run in runs:
            parts = [self.parts[number] for number in run]
            plan = plan_of_parts(parts, [_whole_chunks(self.parts[number], jobs[number]) for number in run])
            if plan is not None:
                found[parts[0].record.name, parts[0].first] = plan
        return found

    def decodings_at(self, sent: torch.Tensor) -> Decodings:
        """How the sent bytes, now in `sent` (uint8[n_bytes]), are decoded."""
        assert self.decodings is not None
        found, at = [], self.records_offset
        for records in self.decodings.records:
            found.append(sent[at : at + records.nbytes].view(torch.int32))
            at += aligned(records.nbytes)
        direct, planes, merges, paths, fused = self.decodings
        return Decodings(
            Decoding(direct.plan.at(found[0]), direct.zstd),
            Decoding(planes.plan.at(found[1]), planes.zstd),
            merges.at(found[2]),
            paths.at(found[3]),
            fused={
                key: plan.at(records) for (key, plan), records in zip(fused.items(), found[4:], strict=True)
            },
        )

    def blame(self, error: FormatError, path: Path) -> None:
        """Name file and tensor, or tensors, in an error of decoding."""
        if len(self.shipments) == 1:
            self.shipments[0].blame(error, path)
            return
        if error.offset is None:
            error.offset = self.parts[0].offset
        error.args = (f"{path}: tensors {self.parts[0].name!r} to {self.parts[-1].name!r}: {error}",)


def _whole_chunks(part: Part, jobs: Jobs) -> Sequence[ChunkJob]:
    """One job for each chunk of a part that may be multiplied straight; nothing where there is no such."""
    return (with_low_bytes(part, jobs) or ()) if part.merges else jobs.chunks


def _summed(amounts: Sequence[dict[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for own in amounts:
        for kind, n_bytes in own.items():
            found[kind] = found.get(kind, 0) + n_bytes
    return found
