"""All memory that weights take while a model is loaded, taken at once: on the device, and pinned on the host."""

from spqfmt.loaders.device.seam import Device, Memory
from spqfmt.residency.device import N_LANDINGS, N_SLOTS, N_STAGING, aligned
from spqfmt.residency.plan import Plan


class Holdings:
    """`homes`: where each part of the plan lives that is not on disk. Buffers are as large as the largest part needs.

    `slots` are the ring. `landings` take compressed bytes on the device, `staging` on the host; `unpacking`, on the
    host, takes stored bytes that are not sent as they are. `tables` and `scratch` serve the DECODE stream. `verdicts`
    has an int32 for each slot and one for loading.
    """

    def __init__(self, device: Device, plan: Plan) -> None:
        items = [part.item for part in plan.parts]
        sent = aligned(max((item.sending.sent_bytes for item in items), default=0))
        tables = aligned(max((item.sending.table_bytes for item in items), default=0))
        scratch = aligned(max((item.part.scratch_bytes for item in items), default=0))
        decoded = aligned(max((item.part.decoded_bytes for item in items), default=0))
        stored = aligned(max((item.part.stored_bytes for item in items), default=0))
        n_landings, n_slots = (N_LANDINGS, N_SLOTS) if plan.is_streamed else (1, 0)
        verdicts = aligned(4 * (N_SLOTS + 1))
        on_device = plan.held_bytes - plan.fixed.total
        buffers = n_landings * sent + tables + scratch + n_slots * decoded + verdicts
        region = _Region(device.allocate(on_device + buffers))
        self.n_bytes = region.memory.n_bytes
        self.landings = [region.take(sent) for _ in range(n_landings)]
        self.slots = [region.take(decoded) for _ in range(n_slots)]
        self.tables, self.scratch, self.verdicts = (region.take(n) for n in (tables, scratch, verdicts))
        host = _Region(device.allocate_host(plan.bytes_in("host") + N_STAGING * sent + stored))
        self.n_host_bytes = host.memory.n_bytes
        self.staging = [host.take(sent) for _ in range(N_STAGING)]
        self.unpacking = host.take(stored)
        self.homes: dict[int, Memory] = {}
        self._decoded: set[int] = set()
        for number, part in enumerate(plan.parts):
            if part.residency != "disk":
                self.homes[number] = (host if part.residency == "host" else region).take(part.bytes)
            if part.residency == "decoded":
                n_bytes = part.item.part.decoded_bytes
                self.homes[number] = self.homes[number].part(0, n_bytes)
                self._decoded.add(number)

    def decoded(self, number: int) -> Memory | None:
        """The bytes of a part that is decoded in device memory; None for others."""
        return self.homes[number] if number in self._decoded else None


class _Region:
    """One allocation, given away piece by piece."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self._at = 0

    def take(self, n_bytes: int) -> Memory:
        taken = self.memory.part(self._at, n_bytes)
        self._at += n_bytes
        return taken
