"""What is done to the bytes of a group on its way: read and checked on the host, decoded and judged on the device."""

from collections.abc import Sequence
from functools import partial
from typing import Protocol

import numpy as np
import torch

from spqfmt.container.located import located
from spqfmt.container.planes import decode_jobs
from spqfmt.container.reader import Reader
from spqfmt.errors import FormatError
from spqfmt.kernels.device import UNUSED_BITS_FAULT, DeviceKernels, raise_fault
from spqfmt.kernels.device.prepared import Decode
from spqfmt.kernels.nvcomp import ZstdFrames
from spqfmt.loaders.device.group_shipping import GroupShipment
from spqfmt.loaders.device.seam import Memory
from spqfmt.schemes.trellis import unfold_rows


class ZstdDecoder(Protocol):
    """Decodes zstd frames on a device."""

    def decode(self, sent: torch.Tensor, jobs: Sequence[ZstdFrames], out: torch.Tensor) -> None:
        """All frames of `sent` into `out`, both uint8 on the device, on the current stream. Raises CorruptError."""
        ...


class Decoder:
    """`zstd` None: zstd chunks are decoded on the host before they are sent."""

    def __init__(self, kernels: DeviceKernels, zstd: ZstdDecoder | None = None) -> None:
        self.kernels = kernels
        self.zstd = zstd
        self._prepared: dict[tuple[int, int, int], list[Decode]] = {}

    def read(self, shipment: GroupShipment, reader: Reader, room: Memory, target: Memory) -> None:
        """Read a group and put what is sent into `target`, host memory.

        `room` has space for the stored bytes of any of its parts, or is `target` where the group goes as it is stored.
        """
        out = target.tensor.numpy()
        jobs = []
        for number, (part, place) in enumerate(zip(shipment.parts, shipment.places, strict=True)):
            at = place.sent if shipment.as_stored else 0
            stored = room.tensor.numpy()[at : at + part.stored_bytes]
            with located(reader.path):
                reader.read_into(part.offset, stored)
            # What was read will be read again only after all else: the page cache has better use for its room.
            reader.forget(part.offset, part.stored_bytes)
            own = shipment.shipments[number]
            if own.as_stored and not shipment.as_stored:
                out[place.sent : place.sent + part.stored_bytes] = stored
            jobs.append(shipment.fill(number, stored, out, reader.path))
        shipment.finish(jobs, out, reader.path)

    def decode(
        self,
        shipment: GroupShipment,
        reader: Reader,
        sent: Memory,
        out: Memory,
        word: Memory,
        tables: Memory,
        scratch: Memory,
    ) -> None:
        """Launch the decoding of a group; what is wrong is added to `word`.

        Raises CorruptError, which names file and tensor, for what is found at once.
        """
        key = (id(shipment), sent.address, out.address)
        prepared = self._prepared.get(key)
        if prepared is None:
            prepared = self._prepared[key] = self._prepare(
                shipment, sent, out, word=word, tables=tables, scratch=scratch
            )
        try:
            for decode in prepared:
                decode()
        except FormatError as error:
            self._find_out(shipment, reader)
            shipment.blame(error, reader.path)
            raise

    def _prepare(
        self,
        shipment: GroupShipment,
        sent: Memory,
        out: Memory,
        word: Memory,
        tables: Memory,
        scratch: Memory,
    ) -> list[Decode]:
        """All that decodes the group from `sent` to `out`, in order: what is checked is checked here."""
        verdict = word.tensor.view(torch.int32)
        stored = sent.tensor[: shipment.records_offset]
        found: list[Decode] = []
        words = tables.tensor.view(torch.int32)
        # Elements of which more than one plane is coded are decoded plane by plane, and put together at their place.
        decodings = shipment.decodings_at(sent.tensor)
        for decoding, target in ((decodings.direct, out), (decodings.planes, scratch)):
            if decoding.plan.jobs:
                found.append(
                    self.kernels.prepare_decode(
                        stored, decoding.plan, target.tensor, tables=words, error=verdict
                    )
                )
            if decoding.zstd:
                assert self.zstd is not None
                found.append(partial(self.zstd.decode, stored, decoding.zstd, target.tensor))
        if decodings.merges.jobs:
            found.append(self.kernels.prepare_merge(stored, scratch.tensor, decodings.merges, out.tensor))
        if decodings.paths.jobs:
            found.append(self.kernels.prepare_unfold(decodings.paths, out.tensor, verdict))
        for part, place in zip(shipment.parts, shipment.places, strict=True):
            if part.used_bits:
                # What does not fill the last byte must be 0 (FORMAT.md 3.2); the host learns it with the verdict.
                end = place.decoded + part.decoded_bytes
                found.append(partial(_check_last, out.tensor[end - 1 : end], part.used_bits, verdict))
        return found

    def judge(self, shipment: GroupShipment, faults: int, reader: Reader) -> None:
        """Raise CorruptError, which names file and tensor, for what decoding found: bits of FAULTS, 0 for nothing."""
        try:
            raise_fault(faults)
        except FormatError as error:
            self._find_out(shipment, reader)
            shipment.blame(error, reader.path)
            raise

    def _find_out(self, shipment: GroupShipment, reader: Reader) -> None:
        """Raise for the part of several that the host cannot decode either."""
        for own in shipment.shipments if len(shipment.shipments) > 1 else ():
            part = own.part
            stored = np.empty(part.stored_bytes, np.uint8)
            reader.read_into(part.offset, stored)
            out = np.empty(part.decoded_bytes, np.uint8)
            try:
                decode_jobs(stored, part.jobs, out, checked=True)
                if part.used_bits and int(out[-1]) >> part.used_bits:
                    raise_fault(1 << UNUSED_BITS_FAULT)
                if part.tiles is not None:
                    unfold_rows(part.tiles, part.first, out.view(np.int8).reshape(part.stop - part.first, -1))
            except FormatError as error:
                own.blame(error, reader.path, getattr(error, "job", 0))
                raise


def _check_last(last: torch.Tensor, used_bits: int, verdict: torch.Tensor) -> None:
    verdict |= (last >> used_bits != 0).int() << UNUSED_BITS_FAULT
