"""Which part lives where when the model runs on a device: in its memory decoded or compressed, in host memory, on disk.

The same moves as on the CPU (plan.py), under two ceilings. What a part costs is what it makes the streams do in a pass:
read, copy, decode. Device memory is given to the moves that save most time a byte, then host memory to what is left.
Parts that are alike are taken spread over the model, not one after the other: so the work that is left for the disk and
the bus comes evenly, and hides behind the rest.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from spqfmt.errors import MemoryBudgetError
from spqfmt.residency.device_rates import DeviceRates
from spqfmt.residency.inventory import Fixed, Inventory, Item
from spqfmt.residency.plan import Plan, Residency, enough_mib, plan_residency
from spqfmt.residency.rates import Rates

N_STAGING = 3
"""Pinned buffers: one being read into, one being copied from, one to be ahead."""
N_LANDINGS = 2
"""Buffers on the device for compressed bytes: one being copied into, one being decoded from."""
N_SLOTS = 3
"""Buffers of the ring of decoded parts: one being decoded, one ready, one in use."""
_GOLDEN = (5**0.5 - 1) / 2
_ALIKE = 1.1
"""Moves whose savings a byte differ by less than this factor count as equal."""


class Load(NamedTuple):
    """What a part asks of memory and streams: bytes that are sent to the device (and stay there compressed), bytes of
    decode tables, and the amounts of DeviceRates that reading and decoding it take."""

    sent_bytes: int
    table_bytes: int
    read: Mapping[str, int]
    decode: Mapping[str, int]


@dataclass(frozen=True)
class DeviceItem:
    """A part of a matrix that is multiplied with in every pass."""

    item: Item
    load: Load


@dataclass(frozen=True)
class DeviceInventory:
    """All that a model holds of weights on a device (`items`, in the order of use, and the three sizes of Inventory),
    and of embeddings, whose rows are looked up on the host."""

    items: tuple[DeviceItem, ...]
    float_bytes: int
    side_bytes: int
    workspace_bytes: int
    lookups: Inventory


class Stages(NamedTuple):
    """Seconds that one pass takes on each stream."""

    read: float
    copy: float
    decode: float
    compute: float


@dataclass(frozen=True)
class DevicePart:
    """Where a part lives, the bytes that it occupies there, and what one pass over one token costs."""

    item: DeviceItem
    residency: Residency
    bytes: int
    stages: Stages

    @property
    def name(self) -> str:
        """Tensor, and channels where they are not all."""
        return self.item.item.part.name


@dataclass(frozen=True)
class DevicePlan:
    """What is held where. `fixed` is device memory, `host_fixed_bytes` the pinned staging and the room to unpack.

    `lookups` is the plan of embeddings in host memory. Ceilings are None for none. The times come from `rates`.
    """

    memory_bytes: int | None
    host_memory_bytes: int | None
    smallest_bytes: int
    smallest_host_bytes: int
    stored_bytes: int
    decoded_bytes: int
    fixed: Fixed
    host_fixed_bytes: int
    parts: tuple[DevicePart, ...]
    lookups: Plan
    rates: DeviceRates

    @property
    def is_streamed(self) -> bool:
        """Whether there are parts that are decoded on every pass."""
        return any(part.residency != "decoded" for part in self.parts)

    @property
    def held_bytes(self) -> int:
        """Device memory that the plan takes."""
        return self.fixed.total + self.bytes_in("decoded") + self.bytes_in("compressed")

    @property
    def host_held_bytes(self) -> int:
        """Host memory that the plan takes."""
        return self.host_fixed_bytes + self.bytes_in("host") + self.lookups.held_bytes

    def bytes_in(self, residency: Residency) -> int:
        """Bytes that parts of one residency occupy."""
        return sum(part.bytes for part in self.parts if part.residency == residency)

    @property
    def stages(self) -> Stages:
        """One pass over one token, all parts."""
        return Stages(*(sum(times) for times in zip(*(part.stages for part in self.parts), strict=True)))

    @property
    def serial_ms(self) -> float:
        """One token, one thing after the other."""
        return 1e3 * sum(self.stages)

    @property
    def overlapped_ms(self) -> float:
        """One token where the streams overlap perfectly: the longest of them."""
        return 1e3 * max(self.stages)

    def to_json(self) -> dict[str, object]:
        """The object that `spqfmt plan --device cuda --json` prints: `spqfmt plan`'s, and what only a device has."""
        layers = [
            {"name": p.name, "residency": p.residency, "bytes": p.bytes, "expected_ms": 1e3 * sum(p.stages)}
            for p in self.parts
        ]
        return {
            "memory_bytes": self.memory_bytes,
            "host_memory_bytes": self.host_memory_bytes,
            "smallest_bytes": self.smallest_bytes,
            "smallest_host_bytes": self.smallest_host_bytes,
            "held_bytes": self.held_bytes,
            "host_held_bytes": self.host_held_bytes,
            "weights_bytes": {"stored": self.stored_bytes, "decoded": self.decoded_bytes},
            "fixed_bytes": vars(self.fixed) | {"total": self.fixed.total, "host": self.host_fixed_bytes},
            "expected_ms": {
                "serial": self.serial_ms,
                "overlapped": self.overlapped_ms,
                "streams": {name: 1e3 * value for name, value in self.stages._asdict().items()},
            },
            "rates": self.rates.to_json(),
            "layers": layers,
            "lookups": self.lookups.to_json()["layers"],
        }


def plan_device(
    inventory: DeviceInventory,
    rates: DeviceRates,
    memory_bytes: int | None = None,
    host_memory_bytes: int | None = None,
) -> DevicePlan:
    """Give every part a residency under both ceilings; without one for the device everything is decoded.

    Raises MemoryBudgetError, which names the smallest ceiling that works, for a smaller one.
    """
    items = inventory.items
    whole, streamed = (
        device_fixed_bytes(inventory, streamed=False),
        device_fixed_bytes(inventory, streamed=True),
    )
    decoded = sum(_aligned(item.item.part.decoded_bytes) for item in items)
    smallest = min(whole.total + decoded, streamed.total)
    _check_ceiling("memory", memory_bytes, smallest)
    is_whole = memory_bytes is None or memory_bytes >= whole.total + decoded
    host_fixed = staging_bytes(items)
    host_rates = Rates(rates.read, rates.host_decode, rates.host_decode, rates.host_decode, rates.compute)
    smallest_lookups = plan_residency(inventory.lookups, host_rates, None).smallest_bytes
    smallest_host = host_fixed + smallest_lookups
    _check_ceiling("host_memory", host_memory_bytes, smallest_host)
    host_room = None if host_memory_bytes is None else host_memory_bytes - smallest_host
    if memory_bytes is None or is_whole:
        residencies: list[Residency] = ["decoded"] * len(items)
    else:
        residencies = _fill(items, rates, memory_bytes - streamed.total, host_room)
    parts = tuple(_planned(item, where, rates) for item, where in zip(items, residencies, strict=True))
    in_host = sum(part.bytes for part in parts if part.residency == "host")
    left = None if host_memory_bytes is None else host_memory_bytes - host_fixed - in_host
    return DevicePlan(
        memory_bytes,
        host_memory_bytes,
        smallest,
        smallest_host,
        sum(item.item.part.stored_bytes for item in items) + _stored_only(inventory.lookups, items),
        decoded + inventory.side_bytes + inventory.float_bytes,
        whole if is_whole else streamed,
        host_fixed,
        parts,
        plan_residency(inventory.lookups, host_rates, left),
        rates,
    )


def _stored_only(lookups: Inventory, items: Sequence[DeviceItem]) -> int:
    """Stored bytes of embeddings that are not multiplied with too."""
    multiplied = {id(item.item.part.record) for item in items}
    return sum(i.part.stored_bytes for i in lookups.items if id(i.part.record) not in multiplied)


def _check_ceiling(name: str, ceiling: int | None, smallest: int) -> None:
    if ceiling is not None and ceiling < smallest:
        raise MemoryBudgetError(
            f"{name} {ceiling / 2**20:.1f} MiB is too small: this model needs at least {enough_mib(smallest)} "
            f"({smallest} bytes), without activations and KV cache",
            smallest,
        )


def _aligned(n_bytes: int) -> int:
    return -(-n_bytes // 64) * 64


def staging_bytes(items: Sequence[DeviceItem]) -> int:
    """Host memory of the pinned buffers, and of the one to unpack in."""
    sent = max((item.load.sent_bytes for item in items), default=0)
    stored = max((item.item.part.stored_bytes for item in items), default=0)
    return N_STAGING * _aligned(sent) + _aligned(stored)


def device_fixed_bytes(inventory: DeviceInventory, *, streamed: bool) -> Fixed:
    """Device memory that is held whatever the ceiling: where parts are `streamed`, or where all are decoded."""
    parts = [item.item.part for item in inventory.items]
    landing = _aligned(max((item.load.sent_bytes for item in inventory.items), default=0))
    tables = _aligned(max((item.load.table_bytes for item in inventory.items), default=0))
    scratch = _aligned(max((part.scratch_bytes for part in parts), default=0))
    ring = _aligned(max((part.decoded_bytes for part in parts), default=0))
    # One landing is enough to load; an error word for each slot, and one for loading.
    return Fixed(
        inventory.float_bytes,
        inventory.side_bytes,
        inventory.workspace_bytes,
        landing * (N_LANDINGS if streamed else 1) + tables + scratch + _aligned(4 * (N_SLOTS + 1)),
        ring * N_SLOTS if streamed else 0,
        0,
    )


class _Move(NamedTuple):
    saved_s_per_byte: float
    number: int
    before: Residency
    after: Residency
    n_bytes: int

    @property
    def rank(self) -> tuple[int, float]:
        """Like savings are alike; of those, every part of the model has the same chance."""
        grade = round(math.log(max(self.saved_s_per_byte, 1e-30)) / math.log(_ALIKE))
        return -grade, self.number * _GOLDEN % 1.0


def _fill(
    items: Sequence[DeviceItem], rates: DeviceRates, room: int, host_room: int | None
) -> list[Residency]:
    # What a part costs outside the device: the host's memory if all fit there, else, at the margin, the disk.
    sent = sum(_aligned(item.load.sent_bytes) for item in items)
    outside: Residency = "host" if host_room is None or sent <= host_room + room else "disk"
    moves = [move for number, item in enumerate(items) for move in _moves(number, item, rates, outside)]
    moves.sort(key=lambda move: move.rank)
    residencies: list[Residency] = [outside] * len(items)
    # A move that found no room may find its step before made later, so one more round.
    for _ in range(2):
        for move in moves:
            if residencies[move.number] == move.before and move.n_bytes <= room:
                residencies[move.number] = move.after
                room -= move.n_bytes
    left = [number for number, residency in enumerate(residencies) if residency == outside]
    for number in sorted(left, key=lambda number: number * _GOLDEN % 1.0):
        n_bytes = _aligned(items[number].load.sent_bytes)
        fits = host_room is None or n_bytes <= host_room
        residencies[number] = "host" if fits else "disk"
        if host_room is not None and fits:
            host_room -= n_bytes
    return residencies


def _moves(number: int, item: DeviceItem, rates: DeviceRates, outside: Residency) -> Iterator[_Move]:
    states: tuple[Residency, ...] = (outside, "compressed", "decoded")
    sizes = [_device_bytes(item, state) for state in states]
    times = [sum(stages(item, state, rates)) for state in states]

    def move(a: int, b: int) -> _Move:
        n_bytes = sizes[b] - sizes[a]
        saved = (times[a] - times[b]) / n_bytes if n_bytes > 0 else float("inf")
        return _Move(min(saved, 1e30), number, states[a], states[b], n_bytes)

    first, both = move(0, 1), move(0, 2)
    # Compressed memory is worth its bytes only where decoded memory does not save more for each.
    if first.saved_s_per_byte > both.saved_s_per_byte and sizes[1] < sizes[2]:
        yield first
        yield move(1, 2)
    yield both


def _device_bytes(item: DeviceItem, residency: Residency) -> int:
    if residency == "decoded":
        return _aligned(item.item.part.decoded_bytes)
    return _aligned(item.load.sent_bytes) if residency == "compressed" else 0


def stages(item: DeviceItem, residency: Residency, rates: DeviceRates) -> Stages:
    """What one pass over one token makes each stream do for a part."""
    load = item.load
    read = rates.seconds(load.read) if residency == "disk" else 0.0
    copy = rates.seconds({"copy": load.sent_bytes}) if residency in {"disk", "host"} else 0.0
    decode = rates.seconds(load.decode) if residency != "decoded" else 0.0
    return Stages(read, copy, decode, rates.seconds({"compute": item.item.part.decoded_bytes}))


def _planned(item: DeviceItem, residency: Residency, rates: DeviceRates) -> DevicePart:
    n_bytes = _aligned(item.load.sent_bytes) if residency == "host" else _device_bytes(item, residency)
    return DevicePart(item, residency, n_bytes, stages(item, residency, rates))
