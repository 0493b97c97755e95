"""The plan of a model on a device: parts in its memory, decoded or compressed, in host memory, or on disk.

What a part costs is what it makes the streams do in a pass: read, copy, decode. Device memory is given first, then host
memory to what is left.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from spqfmt.codecs.registry import CODECS
from spqfmt.residency.cpu import plan_residency
from spqfmt.residency.device_rates import DeviceRates
from spqfmt.residency.inventory import Fixed, Inventory, Item
from spqfmt.residency.ladder import Residency, Stages, State, check_ceiling, climb, spread
from spqfmt.residency.plan import HostPlan, Plan, PlannedPart
from spqfmt.residency.rates import Rates

ALIGNMENT = 64
"""What chunks are aligned to, and everything else that is put into one allocation."""
N_STAGING = 3
"""Pinned buffers: one being read into, one being copied from, one to be ahead."""
N_LANDINGS = 2
"""Buffers on the device for compressed bytes: one being copied into, one being decoded from."""
N_SLOTS = 3
"""Buffers of the ring of decoded parts: one being decoded, one ready, one in use."""


@dataclass(frozen=True)
class DeviceInventory:
    """All that a model holds of weights on a device (`items` with their loads, in the order of use, and the four sizes
    of Inventory), and of embeddings, whose rows are looked up on the host."""

    items: tuple[Item, ...]
    float_bytes: int
    side_bytes: int
    workspace_bytes: int
    lookups: Inventory
    values_bytes: int = 0


def plan_device(
    inventory: DeviceInventory,
    rates: DeviceRates,
    memory_bytes: int | None = None,
    host_memory_bytes: int | None = None,
) -> Plan:
    """Give every part a residency under both ceilings; without one for the device everything is decoded.

    Raises MemoryBudgetError, which names the smallest ceiling that works, for a smaller one.
    """
    items = inventory.items
    # Where all stays decoded on the device there is no ring, and one landing, to load.
    whole = device_fixed_bytes(inventory, streamed=False)
    streamed = device_fixed_bytes(inventory, streamed=True)
    decoded = sum(aligned(item.part.decoded_bytes) for item in items)
    least = sum(aligned(min(item.sending.sent_bytes, item.part.decoded_bytes)) for item in items)
    smallest = min(whole.total + decoded, streamed.total)
    check_ceiling("memory", memory_bytes, smallest)
    host_fixed = staging_bytes(items)
    smallest_host = host_fixed + plan_residency(inventory.lookups, host_rates(rates), None).smallest_bytes
    check_ceiling("host_memory", host_memory_bytes, smallest_host)
    host_room = None if host_memory_bytes is None else host_memory_bytes - smallest_host
    is_whole = memory_bytes is None or memory_bytes >= whole.total + decoded
    if memory_bytes is None or is_whole:
        chosen = [_state(item, "decoded", rates) for item in items]
    else:
        chosen = _choose(items, rates, memory_bytes - streamed.total, host_room)
    parts = tuple(PlannedPart(item, *state) for item, state in zip(items, chosen, strict=True))
    # Rows are looked up on the host, with the memory that parts which wait there leave.
    in_host = sum(part.bytes for part in parts if part.residency == "host")
    left = None if host_memory_bytes is None else host_memory_bytes - host_fixed - in_host
    lookups = plan_residency(inventory.lookups, host_rates(rates), left)
    return Plan(
        memory_bytes=memory_bytes,
        smallest_bytes=smallest,
        in_memory_bytes=min(whole.total + decoded, streamed.total + least),
        stored_bytes=sum(item.part.stored_bytes for item in items) + _stored_only(inventory.lookups, items),
        decoded_bytes=decoded + inventory.side_bytes + inventory.float_bytes,
        fixed=whole if is_whole else streamed,
        parts=parts,
        host=HostPlan(
            memory_bytes=host_memory_bytes,
            smallest_bytes=smallest_host,
            fixed_bytes=host_fixed,
            lookups=lookups,
            rates=rates,
        ),
    )


def host_rates(rates: DeviceRates) -> Rates:
    """Those of the host beside the device."""
    return Rates(rates.read, rates.compute, dict.fromkeys(CODECS, rates.host_decode))


def _choose(items: Sequence[Item], rates: DeviceRates, room: int, host_room: int | None) -> list[State]:
    # What a part costs outside the device: the host's memory if all fit there, else, at the margin, the disk.
    sent = sum(aligned(item.sending.sent_bytes) for item in items)
    outside: Residency = "host" if host_room is None or sent <= host_room + room else "disk"
    on_device = climb([_on_device(item, outside, rates) for item in items], room, spread)
    left = [number for number, state in enumerate(on_device) if state.residency == outside]
    ladders = [[_state(items[number], where, rates) for where in ("disk", "host")] for number in left]
    outside_states = climb(ladders, host_room, lambda _, number: (0.0, spread(0.0, left[number])[1]))
    chosen = list(on_device)
    for number, state in zip(left, outside_states, strict=True):
        chosen[number] = state
    return chosen


def _on_device(item: Item, outside: Residency, rates: DeviceRates) -> list[State]:
    """The states under the device's ceiling; outside it a part takes nothing of its memory."""
    first = _state(item, outside, rates)._replace(n_bytes=0)
    return [first, _state(item, "compressed", rates), _state(item, "decoded", rates)]


def _state(item: Item, residency: Residency, rates: DeviceRates) -> State:
    sizes = {
        "disk": 0,
        "host": item.sending.sent_bytes,
        "compressed": item.sending.sent_bytes,
        "decoded": item.part.decoded_bytes,
    }
    return State(residency, aligned(sizes[residency]), stages(item, residency, rates))


def stages(item: Item, residency: Residency, rates: DeviceRates) -> Stages:
    """What one pass over one token makes each stream do for a part."""
    load = item.sending
    read = rates.seconds(load.read) if residency == "disk" else 0.0
    copy = rates.seconds({"copy": load.sent_bytes}) if residency in {"disk", "host"} else 0.0
    decode = rates.seconds(load.decode) if residency != "decoded" else 0.0
    return Stages(read, copy, decode, rates.seconds({"compute": item.part.decoded_bytes}))


def _stored_only(lookups: Inventory, items: Sequence[Item]) -> int:
    """Stored bytes of embeddings that are not multiplied with too."""
    multiplied = {id(item.part.record) for item in items}
    return sum(i.part.stored_bytes for i in lookups.items if id(i.part.record) not in multiplied)


def aligned(n_bytes: int) -> int:
    """The smallest multiple of ALIGNMENT that holds `n_bytes`."""
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


def staging_bytes(items: Sequence[Item]) -> int:
    """Host memory of the pinned buffers, and of the one to unpack in."""
    sent = max((item.sending.sent_bytes for item in items), default=0)
    stored = max((item.part.stored_bytes for item in items), default=0)
    return N_STAGING * aligned(sent) + aligned(stored)


def device_fixed_bytes(inventory: DeviceInventory, *, streamed: bool) -> Fixed:
    """Device memory that is held whatever the ceiling: where parts are `streamed`, or where all are decoded."""
    parts = [item.part for item in inventory.items]
    landing = aligned(max((item.sending.sent_bytes for item in inventory.items), default=0))
    tables = aligned(max((item.sending.table_bytes for item in inventory.items), default=0))
    scratch = aligned(max((part.scratch_bytes for part in parts), default=0))
    ring = aligned(max((part.decoded_bytes for part in parts), default=0))
    # One landing is enough to load; an error word for each slot, and one for loading.
    return Fixed(
        floats=inventory.float_bytes,
        sides=inventory.side_bytes,
        workspace=inventory.workspace_bytes,
        staging=landing * (N_LANDINGS if streamed else 1) + tables + scratch + aligned(4 * (N_SLOTS + 1)),
        ring=ring * N_SLOTS if streamed else 0,
        rows=0,
        values=inventory.values_bytes,
    )
