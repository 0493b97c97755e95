"""What is done to the bytes of a part on its way: read and checked on the host, decoded and judged on the device."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch

from spqfmt import wire
from spqfmt.container.located import located
from spqfmt.container.reader import Reader
from spqfmt.errors import FormatError
from spqfmt.kernels.device import UNUSED_BITS_FAULT, DeviceKernels, raise_fault
from spqfmt.kernels.nvcomp import ZstdFrames
from spqfmt.loaders.device.seam import Memory
from spqfmt.loaders.device.shipping import Shipment


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

    def read(self, shipment: Shipment, reader: Reader, room: Memory, target: Memory) -> None:
        """Read a part into `room` (part.stored_bytes or more) and put what is sent into `target`, host memory."""
        part = shipment.part
        stored = room.tensor.numpy()[: part.stored_bytes]
        with located(reader.path):
            reader.read_into(part.offset, stored)
        # What was read will be read again only after all else: the page cache has better use for its room.
        reader.forget(part.offset, part.stored_bytes)
        shipment.fill(stored, target.tensor.numpy(), reader.path)

    def decode(
        self,
        shipment: Shipment,
        path: Path,
        sent: Memory,
        out: Memory,
        word: Memory,
        tables: Memory,
        scratch: Memory,
    ) -> None:
        """Launch the decoding of a part; `word` is zero afterwards, or says what is wrong.

        Raises CorruptError, which names file and tensor, for what is found at once.
        """
        part = shipment.part
        verdict = word.tensor.view(torch.int32).zero_()
        decoding = shipment.decoding_at(sent.tensor)
        # Elements of several bytes are decoded plane by plane, and put together at their place.
        target = scratch.tensor[: part.scratch_bytes] if part.merges else out.tensor
        stored = sent.tensor[: shipment.records_offset]
        if decoding.plan.jobs:
            self.kernels.decode_chunks(
                stored, decoding.plan, target, tables=tables.tensor.view(torch.int32), error=verdict
            )
        if decoding.zstd:
            assert self.zstd is not None
            try:
                self.zstd.decode(stored, decoding.zstd, target)
            except FormatError as error:
                shipment.blame(error, path)
                raise
        dtype = wire.DTYPES[part.dtype]
        if part.used_bits:
            # What does not fill the last byte must be 0 (FORMAT.md 3.2); the host learns it with the verdict.
            last = target[part.decoded_bytes - 1 : part.decoded_bytes]
            verdict |= (last >> part.used_bits != 0).int() << UNUSED_BITS_FAULT
        for merge in part.merges:
            planes = target[merge.scratch_offset : merge.scratch_offset + merge.n_bytes]
            elements = out.tensor[merge.out_offset : merge.out_offset + merge.n_bytes]
            self.kernels.merge_planes(
                planes.view(dtype.bits // 8, -1), elements.view(_INTEGERS[dtype.bits]), rotated=dtype.rotate
            )

    def judge(self, shipment: Shipment, word: Memory, path: Path) -> None:
        """Raise CorruptError, which names file and tensor, for what decoding found; waits for it."""
        try:
            raise_fault(int(word.tensor.view(torch.int32).item()))
        except FormatError as error:
            shipment.blame(error, path)
            raise


_INTEGERS = {16: torch.int16, 32: torch.int32, 64: torch.int64}
