"""All memory that weights take while a model is loaded, taken at once: on the device, and pinned on the host."""

from spqfmt.loaders.device.seam import Device, Memory
from spqfmt.residency.device import N_LANDINGS, N_SLOTS, N_STAGING, verdict_bytes
from spqfmt.residency.groups import aligned
from spqfmt.residency.plan import Plan


class Holdings:
    """`homes`: where each group of the plan lives that is not on disk. Buffers are as large as the largest group needs.

    `slots` are the ring. `landings` take compressed bytes on the device, `staging` on the host; `unpacking`, on the
    host, takes stored bytes that are not sent as they are. `tables` and `scratch` serve the DECODE stream. `verdicts`
    has an int32 for each group.
    """

    def __init__(self, device: Device, plan: Plan) -> None:
        groups = plan.on_host.groups
        sent = max((group.sent_bytes for group in groups), default=0)
        tables = max((group.table_bytes for group in groups), default=0)
        scratch = max((group.scratch_bytes for group in groups), default=0)
        decoded = max((group.decoded_bytes for group in groups), default=0)
        stored = aligned(max((group.stored_bytes for group in groups), default=0))
        n_landings, n_slots = (N_LANDINGS, N_SLOTS) if plan.is_streamed else (1, 0)
        verdicts = verdict_bytes(groups)
        on_device = plan.held_bytes - plan.fixed.total
        buffers = n_landings * sent + tables + scratch + n_slots * decoded + verdicts
        self.memory = device.allocate(on_device + buffers)
        region = _Region(self.memory)
        self.landings = [region.take(sent) for _ in range(n_landings)]
        self.slots = [region.take(decoded) for _ in range(n_slots)]
        self.tables, self.scratch, self.verdicts = (region.take(n) for n in (tables, scratch, verdicts))
        host = _Region(device.allocate_host(plan.bytes_in("host") + N_STAGING * sent + stored))
        self.n_host_bytes = host.memory.n_bytes
        self.staging = [host.take(sent) for _ in range(N_STAGING)]
        self.unpacking = host.take(stored)
        self.homes: dict[int, Memory] = {}
        self._decoded: set[int] = set()
        for number, group in enumerate(groups):
            parts = plan.parts[group.first : group.stop]
            residency = parts[0].residency
            if residency != "disk":
                n_bytes = sum(part.bytes for part in parts)
                self.homes[number] = (host if residency == "host" else region).take(n_bytes)
            if residency == "decoded":
                self._decoded.add(number)

    @property
    def n_bytes(self) -> int:
        """All of it on the device."""
        return self.memory.n_bytes

    @property
    def decoded(self) -> dict[int, Memory]:
        """The bytes of each group that is decoded in device memory."""
        return {number: self.homes[number] for number in self._decoded}


class _Region:
    """One allocation, given away piece by piece."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self._at = 0

    def take(self, n_bytes: int) -> Memory:
        taken = self.memory.part(self._at, n_bytes)
        self._at += n_bytes
        return taken
