"""Groups of weights on their way to the product: read, copied, decoded and lent, each step on a stream of its own.

What is given to the device is given ahead of the computation, by a guess (spqfmt.loaders.foreseen) that never decides
what is shown. Streams wait for each other by events. The host waits for reads. For the decoder's verdict it waits once,
when all that is in memory was decoded by way of trial while loading; and for what is on disk the first time that it is
decoded. What has the same checksum the next time decodes the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

from spqfmt.container.reader import Reader
from spqfmt.errors import BackendError, FormatError, SpqError
from spqfmt.kernels.device.fusing import FusedPlan
from spqfmt.loaders.device.decoder import Decoder
from spqfmt.loaders.device.group_shipping import GroupShipment
from spqfmt.loaders.device.holdings import Holdings
from spqfmt.loaders.device.pieces import WeightPiece, pieces_of
from spqfmt.loaders.device.seam import Device, Event, Memory, Queue
from spqfmt.loaders.device.sending import Sending
from spqfmt.loaders.device.verdicts import Verdicts
from spqfmt.loaders.foreseen import ForeseenOrAsked, Slot, SlotState
from spqfmt.residency.ladder import Residency
from spqfmt.residency.plan import Plan


@dataclass(eq=False, kw_only=True)
class _DeviceSlot(Slot):
    """Room for one decoded group. `event`: the read that is awaited, or the decoding; `released`: its last use."""

    number: int
    memory: Memory
    staging: int = -1
    event: Event | None = None
    released: Event | None = None


class Pipeline:
    """Serves one thread at a time. `load` first; `shipments` are the plan's groups in order.

    A group that is not decoded in memory is lent until another one is asked for.
    """

    def __init__(
        self,
        device: Device,
        plan: Plan,
        shipments: Sequence[GroupShipment],
        readers: Sequence[Reader],
        decoder: Decoder,
    ) -> None:
        self._device = device
        self._shipments = shipments
        self._readers = readers
        self._decoder = decoder
        self._held = Holdings(device, plan)
        self._decoded = self._held.decoded
        self._residencies = [plan.parts[group.first].residency for group in plan.on_host.groups]
        self._fused = {n for n, group in enumerate(plan.on_host.groups) if plan.parts[group.first].fused}
        order = [n for n, residency in enumerate(self._residencies) if residency != "decoded"]
        slots = [_DeviceSlot(number=i, memory=memory) for i, memory in enumerate(self._held.slots)]
        chosen = [n for n in order if plan.parts[plan.on_host.groups[n].first].item.expert is not None]
        self._foreseen = ForeseenOrAsked(slots, order, chosen)
        self._verdicts = Verdicts(device, self._held.verdicts, shipments, readers=readers, decoder=decoder)
        self._sending = Sending(
            device=device,
            held=self._held,
            shipments=shipments,
            readers=readers,
            decoder=decoder,
            verdicts=self._verdicts,
        )
        self._staging_taken = [False] * len(self._held.staging)
        self._lent: _DeviceSlot | None = None
        self._broken: BackendError | None = None
        self._by_graph = False
        self._recorded: set[int] | None = None

    @property
    def held_bytes(self) -> int:
        """Device memory of weights and buffers, without scales and what else comes with them."""
        return self._held.n_bytes

    @property
    def host_held_bytes(self) -> int:
        """Host memory of weights and staging."""
        return self._held.n_host_bytes

    @property
    def pieces(self) -> dict[str, tuple[WeightPiece, ...]]:
        """What products are launched with, by the tensor's name."""
        return pieces_of(self._shipments, self._decoded, self._held.memory)

    def load(self) -> None:
        """Read what the plan keeps in memory, and decode it once. Raises FormatError, OSError, BackendError."""
        kept = [n for n, residency in enumerate(self._residencies) if residency != "disk"]
        self._verdicts.clear()
        reads: dict[int, tuple[int, Event]] = {}
        for i, number in enumerate(kept):
            for ahead in kept[i : i + len(self._held.staging)]:
                if ahead not in reads:
                    reads[ahead] = self._read_to_keep(ahead)
            staging, event = reads[number]
            home = self._held.homes[number]
            residency = self._residencies[number]
            if residency == "compressed":
                self._sending.copy(number, self._held.staging[staging], home, event=event, staging=staging)
                self._device.wait(Queue.DECODE, self._device.record(Queue.COPY))
                sent = home
            else:
                source = home if residency == "host" else self._held.staging[staging]
                sent = self._sending.land(number, source, event, staging)
            self._sending.decode(
                number, sent, home if residency == "decoded" else self._foreseen.slots[0].memory
            )
            if residency != "compressed":
                self._sending.landed(self._device.record(Queue.DECODE))
            if staging >= 0:
                self._staging_taken[staging] = False
        for stream in (Queue.COPY, Queue.DECODE):
            self._device.synchronize(self._device.record(stream))
        self._verdicts.judge(kept)
        self._prefetch()

    def ask(self, numbers: Sequence[int]) -> None:
        """Get these groups of experts ready in this order, as far as there are free slots."""
        self._after_graph()
        self._foreseen.ask([number for number in numbers if number not in self._decoded])
        self._prefetch()

    def soonest(self, number: int) -> int:
        """How far away a group is: the smaller, the sooner it can be computed with."""
        return _NEAR.index(self._residencies[number])

    @contextmanager
    def lend(self, number: int) -> Iterator[Memory]:
        """The decoded bytes of a group, for work on COMPUTE that is given while the context lasts.

        Raises FormatError and OSError of reading and decoding; the next call tries again. A BackendError stays.
        """
        try:
            yield self.hold(number)
        except BackendError as error:
            self._fail(error)
            raise

    def hold(self, number: int) -> Memory:
        """What `lend` gives, for work that is given before another group is held."""
        home = self._decoded.get(number)
        if home is not None:
            return home
        if self._broken is not None:
            raise self._broken
        slot = self._lent
        if slot is None or slot.part != number:
            slot = self._obtain(number)
        return slot.memory

    def settle(self) -> None:
        """Forget what is got ready ahead, so that a graph of a pass may be recorded, or given, next on COMPUTE.

        What is decoded by one afterwards comes behind it.
        """
        if not self._by_graph:
            self._forget()
            self._by_graph = True

    @contextmanager
    def recording(self) -> Iterator[None]:
        """While a pass is recorded by the device, settled before: it decodes all that it computes with, and no more."""
        self._recorded = set()
        try:
            if self._foreseen.slots:
                self._device.wait(Queue.DECODE, self._device.record(Queue.COMPUTE))
            yield
            if self._foreseen.slots:
                self._device.wait(Queue.COMPUTE, self._device.record(Queue.DECODE))
        finally:
            # Nobody can wait for events of a graph behind it.
            self._clear_slots()
            self._recorded = None

    def _after_graph(self) -> None:
        if self._by_graph and self._recorded is None:
            self._forget()
            self._by_graph = False

    def _forget(self) -> None:
        """What is given from now on comes behind all that both queues were given."""
        self._clear_slots()
        if self._foreseen.slots:
            self._device.wait(Queue.COMPUTE, self._device.record(Queue.DECODE))
            self._device.wait(Queue.DECODE, self._device.record(Queue.COMPUTE))

    def _clear_slots(self) -> None:
        self._lent = None
        for slot in self._foreseen.slots:
            self._drop(slot)
            slot.released = None

    def _fail(self, error: BackendError) -> None:
        """A device that fails once is not trusted any more; one that cannot record something works as before."""
        if self._recorded is None:
            self._broken = error

    def is_multiplied_straight(self, number: int) -> bool:
        """Whether few tokens are planned to be multiplied by a group without decoding it."""
        return number in self._fused

    def stored(self, piece: WeightPiece) -> tuple[Memory, FusedPlan] | None:
        """All that was sent of a piece's group, which stays, and how to multiply by the piece without decoding it.

        None: it is planned to be decoded.
        """
        if piece.group not in self._fused:
            return None
        shipment = self._shipments[piece.group]
        sent = self._held.homes[piece.group].part(0, shipment.n_bytes)
        plan = shipment.decodings_at(sent.tensor).fused.get((piece.record.name, piece.first))
        return None if plan is None else (sent, plan)

    def _obtain(self, number: int) -> _DeviceSlot:
        self._after_graph()
        if self._recorded is not None:
            self._recorded.add(number)
        if self._lent is not None:
            self._release(self._lent)
        self._foreseen.used(number)
        slot = self._find(number) or self._claim()
        with self._watched(slot):
            if slot.state is SlotState.FREE:
                self._begin(slot, number)
            if slot.state is SlotState.FILLING:
                self._forward(slot)
            assert slot.event is not None
            self._device.wait(Queue.COMPUTE, slot.event)
            self._verdicts.prove(number)
        slot.state = SlotState.LENT
        self._lent = slot
        self._prefetch()
        return slot

    def _find(self, number: int) -> _DeviceSlot | None:
        """The slot that was filled with the part, or is to be; None where nobody thought of it, or it went wrong."""
        slot = next(self._foreseen.holders(number), None)
        if slot is None or slot.state is not SlotState.FILLING:
            return slot
        try:
            with self._watched(slot):
                self._forward(slot)
        except (FormatError, OSError):
            # It failed when nobody had asked yet: what was wrong then may be right now.
            return None
        return slot

    def _claim(self) -> _DeviceSlot:
        """A slot for a part that was not foreseen: a free one, or one that was filled ahead and is not in use."""
        there = chain(self._foreseen.free(), self._foreseen.surplus(SlotState.READY, SlotState.FILLING))
        slot = next(there, None)
        if slot is None:
            raise SpqError("more groups are in use at once than the ring has slots")
        self._drop(slot)
        return slot

    def _drop(self, slot: _DeviceSlot) -> None:
        # What is decoded into it is dropped in order, since one stream decodes; what is read into its staging likewise.
        if slot.staging >= 0:
            self._staging_taken[slot.staging] = False
        slot.clear()
        slot.staging, slot.event = -1, None

    def _release(self, slot: _DeviceSlot) -> None:
        """What computes with a slot is given: it may be filled again behind that."""
        self._lent = None
        try:
            slot.released = self._device.record(Queue.COMPUTE)
        except BackendError as error:
            self._fail(error)
            raise
        slot.clear()
        slot.event = None

    def _prefetch(self) -> None:
        """Begin what comes after the part used last, as far as there are free slots."""
        for part in self._foreseen.coming(len(self._foreseen.slots)):
            if self._broken is not None or part in (self._recorded or ()):
                return
            slot = next(self._foreseen.holders(part), None)
            try:
                if slot is None:
                    slot = next(self._foreseen.free(), None)
                    if slot is None or not self._can_begin(part):
                        return
                    with self._watched(slot):
                        self._begin(slot, part)
                if slot.state is SlotState.FILLING and slot.event is not None and slot.event.done():
                    with self._watched(slot):
                        self._forward(slot)
            except (SpqError, OSError):
                # Whoever asks for the part tries again and is told.
                return

    def _can_begin(self, number: int) -> bool:
        return self._residencies[number] != "disk" or not all(self._staging_taken)

    @contextmanager
    def _watched(self, slot: _DeviceSlot) -> Iterator[None]:
        """A slot whose filling fails is free again."""
        try:
            yield
        except BackendError as error:
            self._fail(error)
            self._drop(slot)
            raise
        except BaseException:
            self._drop(slot)
            raise

    def _begin(self, slot: _DeviceSlot, number: int) -> None:
        """Start to fill a free slot: with a read, or all the way where the bytes are in memory."""
        residency = self._residencies[number]
        slot.part = number
        if residency == "disk":
            slot.staging = (
                self._staging_taken.index(False) if not all(self._staging_taken) else self._free_one()
            )
            slot.state = SlotState.FILLING
            self._staging_taken[slot.staging] = True
            slot.event = self._sending.read_staged(number, slot.staging)
            return
        slot.state = SlotState.READY
        sent = self._held.homes[number]
        if residency == "host":
            sent = self._sending.land(number, sent, None, -1)
        self._decode_into(slot, number, sent, landed=residency == "host")

    def _free_one(self) -> int:
        """A staging buffer taken from a part that nobody has asked for yet."""
        slot = next(self._foreseen.surplus(SlotState.FILLING))
        staging = slot.staging
        self._drop(slot)
        return staging

    def _forward(self, slot: _DeviceSlot) -> None:
        """What was read goes on to the device; the host waits for the read if it must."""
        number, staging = slot.part, slot.staging
        landing = self._sending.land(number, self._held.staging[staging], slot.event, staging)
        self._staging_taken[staging] = False
        slot.staging = -1
        self._decode_into(slot, number, landing, landed=True)

    def _decode_into(self, slot: _DeviceSlot, number: int, sent: Memory, *, landed: bool) -> None:
        if slot.released is not None:
            self._device.wait(Queue.DECODE, slot.released)
        self._sending.decode(number, sent, slot.memory)
        slot.event = self._device.record(Queue.DECODE)
        slot.state = SlotState.READY
        if landed:
            self._sending.landed(slot.event)

    def _read_to_keep(self, number: int) -> tuple[int, Event]:
        if self._residencies[number] == "host":
            return -1, self._sending.read(number, self._held.homes[number], None)
        staging = self._staging_taken.index(False)
        self._staging_taken[staging] = True
        return staging, self._sending.read_staged(number, staging)


_NEAR: tuple[Residency, ...] = ("decoded", "compressed", "host", "disk")
