"""Where each part of a model lives, and what that comes to in bytes and in time."""

from dataclasses import dataclass

from spqfmt.cached import cached_property
from spqfmt.residency.device_rates import DeviceRates
from spqfmt.residency.groups import Group
from spqfmt.residency.inventory import Fixed, Item
from spqfmt.residency.ladder import Residency, Stages
from spqfmt.residency.parts import Part


@dataclass(frozen=True)
class PlannedPart:
    """Where a part lives, the bytes that it occupies there (0 on disk), and what one pass over one token costs.

    `fused`: on a device, few tokens are multiplied straight from the compressed bytes.
    """

    item: Item
    residency: Residency
    bytes: int
    stages: Stages
    fused: bool = False

    @property
    def name(self) -> str:
        """Tensor, and channels where they are not all."""
        return self.item.part.name

    @property
    def expected_ms(self) -> float:
        """One pass over one token, one thing after the other."""
        return 1e3 * sum(self.stages)


@dataclass(frozen=True)
class HostPlan:
    """The host's side of a plan for a device, whose times come from `rates`.

    `memory_bytes` is the host's ceiling, None for none; `fixed_bytes` the pinned staging and the room to unpack;
    `lookups` the plan of embeddings whose rows are looked up on the host. `groups`: the plan's parts, all of them in
    order, as they go to the device together; those of a group have one residency.
    """

    memory_bytes: int | None
    smallest_bytes: int
    fixed_bytes: int
    lookups: "Plan"
    rates: DeviceRates
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class Plan:
    """What is held where: on the CPU, or on a device where there is a `host`.

    `memory_bytes` is the ceiling, None for none; `held_bytes` what the plan uses of it. `in_memory_bytes` is the
    smallest ceiling that has room for all weights, compressed or decoded.
    """

    memory_bytes: int | None
    smallest_bytes: int
    in_memory_bytes: int
    stored_bytes: int
    decoded_bytes: int
    fixed: Fixed
    parts: tuple[PlannedPart, ...]
    host: HostPlan | None = None

    @cached_property
    def numbers(self) -> dict[Part, int]:
        """The places of the parts in the plan."""
        return {planned.item.part: number for number, planned in enumerate(self.parts)}

    @cached_property
    def by_tensor(self) -> dict[str, tuple[Part, ...]]:
        """The parts of each tensor, in order."""
        found: dict[str, tuple[Part, ...]] = {}
        for part in self.numbers:
            found[part.record.name] = (*found.get(part.record.name, ()), part)
        return found

    @property
    def on_host(self) -> HostPlan:
        """The host's side of a plan for a device."""
        assert self.host is not None, "a plan for the CPU has one side"
        return self.host

    @property
    def is_streamed(self) -> bool:
        """Whether there are parts that are decoded on every pass."""
        return any(part.residency != "decoded" for part in self.parts)

    @property
    def held_bytes(self) -> int:
        """Bytes that the plan takes of the memory where the model runs."""
        return self.fixed.total + sum(part.bytes for part in self.parts if part.residency != "host")

    @property
    def free_bytes(self) -> int | None:
        """Bytes under the ceiling that weights may take which the model's own code reads; None where it has none."""
        return None if self.memory_bytes is None else self.memory_bytes - self.held_bytes + self.fixed.values

    @property
    def host_held_bytes(self) -> int:
        """Bytes that a plan for a device takes of the host's memory."""
        if self.host is None:
            return 0
        return self.host.fixed_bytes + self.bytes_in("host") + self.host.lookups.held_bytes

    @property
    def fused_bytes(self) -> int:
        """Compressed bytes on a device that few tokens are multiplied straight from."""
        return sum(part.bytes for part in self.parts if part.fused)

    def bytes_in(self, residency: Residency) -> int:
        """Bytes that parts of one residency occupy."""
        return sum(part.bytes for part in self.parts if part.residency == residency)

    @property
    def stages(self) -> Stages:
        """One pass over one token, all parts."""
        return Stages(
            *(sum(part.stages[stream] for part in self.parts) for stream in range(len(Stages._fields)))
        )

    @property
    def serial_ms(self) -> float:
        """One token, one thing after the other."""
        return 1e3 * sum(self.stages)

    @property
    def overlapped_ms(self) -> float:
        """One token where what can overlap does: the longest of a device's streams; on the CPU the longer of computing
        and the rest (Double Compression's latency model)."""
        stages = self.stages
        if self.host is not None:
            return 1e3 * max(stages)
        return 1e3 * max(stages.compute, sum(stages) - stages.compute)

    def to_json(self) -> dict[str, object]:
        """The object that `spqfmt plan --json` prints."""
        found: dict[str, object] = {
            "memory_bytes": self.memory_bytes,
            "smallest_bytes": self.smallest_bytes,
            "in_memory_bytes": self.in_memory_bytes,
            "held_bytes": self.held_bytes,
            "weights_bytes": {"stored": self.stored_bytes, "decoded": self.decoded_bytes},
            "fixed_bytes": vars(self.fixed) | {"total": self.fixed.total},
            "expected_ms": {"serial": self.serial_ms, "overlapped": self.overlapped_ms},
            "layers": [
                {"name": p.name, "residency": p.residency, "bytes": p.bytes, "expected_ms": p.expected_ms}
                | ({} if p.item.share is None else {"share": p.item.share})
                | ({"fused": True} if p.fused else {})
                for p in self.parts
            ],
        }
        return found | ({} if self.host is None else self._device_json(self.host))

    def _device_json(self, host: HostPlan) -> dict[str, object]:
        """What only a plan for a device has, in place of and beside the rest."""
        return {
            "host_memory_bytes": host.memory_bytes,
            "smallest_host_bytes": host.smallest_bytes,
            "host_held_bytes": self.host_held_bytes,
            "fixed_bytes": vars(self.fixed) | {"total": self.fixed.total, "host": host.fixed_bytes},
            "expected_ms": {
                "serial": self.serial_ms,
                "overlapped": self.overlapped_ms,
                "streams": {name: 1e3 * value for name, value in self.stages._asdict().items()},
            },
            "rates": host.rates.to_json(),
            "lookups": host.lookups.to_json()["layers"],
        }
