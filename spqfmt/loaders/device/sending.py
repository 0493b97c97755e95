"""The steps of one group on its way: read into host memory, copied to the device, decoded there."""

from collections.abc import Sequence

from spqfmt.container.reader import Reader
from spqfmt.loaders.device.decoder import Decoder
from spqfmt.loaders.device.group_shipping import GroupShipment
from spqfmt.loaders.device.holdings import Holdings
from spqfmt.loaders.device.seam import Device, Event, Memory, Queue, Work, copy_bytes
from spqfmt.loaders.device.verdicts import Verdicts


class Sending:
    """Gives each step to its queue, behind what the buffers that it takes were used for before."""

    def __init__(
        self,
        device: Device,
        held: Holdings,
        shipments: Sequence[GroupShipment],
        readers: Sequence[Reader],
        decoder: Decoder,
        verdicts: Verdicts,
    ) -> None:
        self._device = device
        self._held = held
        self._shipments = shipments
        self._readers = readers
        self._decoder = decoder
        self._verdicts = verdicts
        self._staging_free: list[Event | None] = [None] * len(held.staging)
        self._landing_free: list[Event | None] = [None] * len(held.landings)
        self._next_landing = 0

    def read_staged(self, number: int, staging: int) -> Event:
        """Read into a staging buffer once what it had before is copied."""
        return self.read(number, self._held.staging[staging], self._staging_free[staging])

    def read(self, number: int, target: Memory, after: Event | None) -> Event:
        """Let the reading thread put what is sent of a group into `target`, which nobody needs `after`."""
        shipment = self._shipments[number]
        reader = self._readers[shipment.reader_number]
        target = target.part(0, shipment.n_bytes)
        reads_direct = shipment.as_stored
        room = target if reads_direct else self._held.unpacking
        work = Work(
            f"read {shipment.name}",
            writes=(target,) if reads_direct else (room, target),
            amounts=shipment.read_amounts,
        )
        return self._device.read(work, lambda: self._decoder.read(shipment, reader, room, target), after)

    def copy(self, number: int, source: Memory, target: Memory, event: Event | None, staging: int) -> None:
        """Copy what is sent of a group once it was read, `event`; its staging is free again behind that."""
        n_bytes = self._shipments[number].n_bytes
        source, target = source.part(0, n_bytes), target.part(0, n_bytes)
        if event is not None:
            self._device.wait(Queue.COPY, event)
        work = Work(f"copy {self._shipments[number].name}", (source,), (target,), {"copy": n_bytes})
        self._device.enqueue(Queue.COPY, work, lambda: copy_bytes(target, source))
        if staging >= 0:
            self._staging_free[staging] = self._device.record(Queue.COPY)

    def land(self, number: int, source: Memory, event: Event | None, staging: int) -> Memory:
        """Copy into the next landing buffer; DECODE comes after it."""
        self._next_landing = (self._next_landing + 1) % len(self._held.landings)
        landing = self._held.landings[self._next_landing]
        free = self._landing_free[self._next_landing]
        if free is not None:
            self._device.wait(Queue.COPY, free)
        self.copy(number, source, landing, event=event, staging=staging)
        self._device.wait(Queue.DECODE, self._device.record(Queue.COPY))
        return landing

    def landed(self, event: Event) -> None:
        """What was copied last is decoded with `event`, so that its buffer is free behind that."""
        self._landing_free[self._next_landing] = event

    def decode(self, number: int, sent: Memory, out: Memory) -> None:
        """Decode what was sent of a group."""
        shipment = self._shipments[number]
        sent = sent.part(0, shipment.n_bytes)
        out = out.part(0, shipment.decoded_bytes)
        word = self._verdicts.word(number)
        tables, scratch = buffers = (self._held.tables, self._held.scratch)
        reader = self._readers[shipment.reader_number]
        work = Work(f"decode {shipment.name}", (sent,), (out, word, *buffers), shipment.decode_amounts)
        self._device.enqueue(
            Queue.DECODE,
            work,
            lambda: self._decoder.decode(
                shipment, reader, sent, out=out, word=word, tables=tables, scratch=scratch
            ),
        )
