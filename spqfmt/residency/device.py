"""The plan of a model on a device: parts in its memory, decoded or compressed, in host memory, or on disk.

What a part costs is what it makes the streams do in a pass: read, copy, decode. Device memory is given first, then host
memory to what is left.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from spqfmt.codecs.registry import CODECS
from spqfmt.residency.cpu import plan_residency
from spqfmt.residency.device_rates import DeviceRates
from spqfmt.residency.device_stages import fused_seconds, is_fused, stages
from spqfmt.residency.groups import SIZE_WHILE_LOADING, SIZES, Group, aligned, group_up
from spqfmt.residency.inventory import Fixed, Inventory, Item
from spqfmt.residency.ladder import Residency, Stages, State, check_ceiling, climb, spread
from spqfmt.residency.plan import HostPlan, Plan, PlannedPart
from spqfmt.residency.rates import Rates

N_STAGING = 3
"""Pinned buffers: one being read into, one being copied from, one to be ahead."""
N_LANDINGS = 2
"""Buffers on the device for compressed bytes: one being copied into, one being decoded from."""
N_SLOTS = 3
"""Buffers of the ring of decoded groups: one being decoded, one ready, one in use."""
LEAST_GAIN = 1.05
"""Weights that have room decoded stay compressed only where a token takes less by this factor: rates are not exact."""
_DECODED: Residency = "decoded"


@dataclass(frozen=True)
class DeviceInventory:
    """All that a model holds of weights on a device (`items` with their loads, in the order of use, and the four sizes
    of Inventory), and of embeddings, whose rows are looked up on the host.

    `rows`: those embeddings as items of the device, whose sides take `row_side_bytes`, but for what is multiplied with
    too: where all has room, rows are looked up there. `part_bytes`: what groups are multiples of; 0: parts go alone.
    `change_bytes`: what sides take more where products are made straight from compressed parts.
    """

    items: tuple[Item, ...]
    float_bytes: int
    side_bytes: int
    workspace_bytes: int
    lookups: Inventory
    values_bytes: int = 0
    rows: tuple[Item, ...] = ()
    row_side_bytes: int = 0
    part_bytes: int = 0
    change_bytes: int = 0

    @property
    def with_rows(self) -> "DeviceInventory":
        """The same with all rows looked up on the device."""
        return replace(
            self,
            items=(*self.rows, *self.items),
            side_bytes=self.side_bytes + self.row_side_bytes,
            lookups=Inventory((), 0, 0, 0),
            rows=(),
            row_side_bytes=0,
        )

    @property
    def decoded_bytes(self) -> int:
        """All items decoded on the device."""
        return sum(aligned(item.part.decoded_bytes) for item in self.items)


@dataclass(frozen=True)
class _Held:
    """One way to hold the items of an inventory: their groups, what is taken besides, and the state of each group."""

    inventory: DeviceInventory
    groups: tuple[Group, ...]
    fixed: Fixed
    states: tuple[Residency, ...]


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
    alone = group_up(items, 0)
    # Where all stays decoded on the device there is no ring, and one landing, to load.
    whole = device_fixed_bytes(inventory, alone, streamed=False).total + inventory.decoded_bytes
    streamed = device_fixed_bytes(inventory, alone, streamed=True).total
    least = sum(aligned(min(item.sending.sent_bytes, item.part.decoded_bytes)) for item in items)
    smallest = min(whole, streamed)
    check_ceiling("memory", memory_bytes, smallest)
    least_lookups = plan_residency(inventory.lookups, host_rates(rates), None).smallest_bytes
    smallest_host = staging_bytes(alone) + least_lookups
    check_ceiling("host_memory", host_memory_bytes, smallest_host)
    held = _held(inventory, rates, memory_bytes, host_memory_bytes)
    parts = tuple(_planned(held, rates))
    host_fixed = staging_bytes(held.groups)
    # Rows are looked up on the host, with the memory that parts which wait there leave.
    in_host = sum(part.bytes for part in parts if part.residency == "host")
    left = None if host_memory_bytes is None else host_memory_bytes - host_fixed - in_host
    lookups = plan_residency(held.inventory.lookups, host_rates(rates), left)
    return Plan(
        memory_bytes=memory_bytes,
        smallest_bytes=smallest,
        in_memory_bytes=min(whole, streamed + least),
        stored_bytes=sum(item.part.stored_bytes for item in items) + _stored_only(inventory.lookups, items),
        decoded_bytes=inventory.decoded_bytes + inventory.side_bytes + inventory.float_bytes,
        fixed=held.fixed,
        parts=parts,
        host=HostPlan(
            memory_bytes=host_memory_bytes,
            smallest_bytes=smallest_host,
            fixed_bytes=host_fixed,
            lookups=lookups,
            rates=rates,
            groups=held.groups,
        ),
    )


def _held(
    inventory: DeviceInventory, rates: DeviceRates, memory_bytes: int | None, host_memory_bytes: int | None
) -> _Held:
    """All of it decoded where there is room, but for what takes a token less where it stays compressed.

    Rows are looked up on the device where all is there, and that costs no token time.
    """
    whole = next(_whole(inventory, rates, memory_bytes, host_memory_bytes), None)
    if whole is None:
        found = _streamed(inventory, rates, memory_bytes, host_memory_bytes)
        assert found is not None, "parts alone have room where the smallest ceiling has"
        if {"host", "disk"} & set(found.states):
            return found
        there = _streamed(inventory.with_rows, rates, memory_bytes, host_memory_bytes)
        return found if there is None or _seconds(there, rates) > _seconds(found, rates) else there
    at_best = replace(rates, operation_s=0.0, step_s=0.0, fused_step_s=0.0)
    if memory_bytes is None or all(
        fused_seconds([item], at_best) >= stages([item], _DECODED, at_best).compute
        for item in inventory.items
    ):
        return whole
    found = _streamed(whole.inventory, rates, memory_bytes, host_memory_bytes)
    if found is None or LEAST_GAIN * _seconds(found, rates) > _seconds(whole, rates):
        return whole
    return found


def _seconds(held: _Held, rates: DeviceRates) -> float:
    """What a token takes: the longest of the streams."""
    found = [
        stages(held.inventory.items[group.first : group.stop], state, rates)
        for group, state in zip(held.groups, held.states, strict=True)
    ]
    return max((sum(column) for column in zip(*found, strict=True)), default=0.0)


def _whole(
    inventory: DeviceInventory, rates: DeviceRates, memory_bytes: int | None, host_memory_bytes: int | None
) -> Iterator[_Held]:
    """The ways to hold all of it decoded that both ceilings have room for, the best first."""
    ways = ((inventory.with_rows, SIZE_WHILE_LOADING), (inventory, SIZE_WHILE_LOADING), (inventory, 0))
    for held, size in ways:
        groups = group_up(held.items, size * inventory.part_bytes)
        fixed = device_fixed_bytes(held, groups, streamed=False)
        lookups = plan_residency(held.lookups, host_rates(rates), None).smallest_bytes
        if fits(fixed.total + held.decoded_bytes, memory_bytes) and fits(
            staging_bytes(groups) + lookups, host_memory_bytes
        ):
            yield _Held(held, groups, fixed, tuple(_DECODED for _ in groups))


def _streamed(
    inventory: DeviceInventory, rates: DeviceRates, memory_bytes: int | None, host_memory_bytes: int | None
) -> _Held | None:
    """The groups with which a token takes least, of those that both ceilings have buffers for, and their states.

    Large ones decode faster, and their buffers take memory from weights. None: there is no room for any.
    """
    assert memory_bytes is not None, "without a ceiling all is held"
    lookups = plan_residency(inventory.lookups, host_rates(rates), None).smallest_bytes
    best: tuple[float, _Held] | None = None
    for size in (0, *reversed(SIZES)) if inventory.part_bytes else (0,):
        groups = group_up(inventory.items, size * inventory.part_bytes)
        fixed = device_fixed_bytes(inventory, groups, streamed=True)
        room = memory_bytes - fixed.total
        host_room = None if host_memory_bytes is None else host_memory_bytes - staging_bytes(groups) - lookups
        if room < 0 or (host_room is not None and host_room < 0):
            continue
        states = _choose(inventory, groups, rates, room=room, host_room=host_room)
        if states is None:
            continue
        held = _Held(inventory, groups, fixed, tuple(state.residency for state in states))
        seconds = max(sum(column) for column in zip(*(state.stages for state in states), strict=True))
        if best is None or seconds < best[0]:
            best = seconds, held
    return None if best is None else best[1]


def fits(n_bytes: int, ceiling: int | None) -> bool:
    """Whether a ceiling, None for none, has room for so many bytes."""
    return ceiling is None or n_bytes <= ceiling


def _planned(held: _Held, rates: DeviceRates) -> Iterator[PlannedPart]:
    """The parts of groups, each with its share of what a pass makes the group cost."""
    for group, residency in zip(held.groups, held.states, strict=True):
        items = held.inventory.items[group.first : group.stop]
        whole, fused = stages(items, residency, rates), is_fused(items, residency, rates)
        n_bytes = sum(item.part.decoded_bytes for item in items)
        multiplied = sum(item.part.decoded_bytes for item in items if item.products)
        for item in items:
            share = item.part.decoded_bytes / n_bytes
            of_products = item.part.decoded_bytes / multiplied if item.products else 0.0
            own = Stages(
                read=whole.read * share,
                copy=whole.copy * share,
                decode=whole.decode * share,
                compute=whole.compute * of_products,
            )
            yield PlannedPart(item, residency, aligned(_bytes_of(item, residency)), own, fused=fused)


def host_rates(rates: DeviceRates) -> Rates:
    """Those of the host beside the device."""
    return Rates(rates.read, rates.compute, dict.fromkeys(CODECS, rates.host_decode))


def _choose(
    inventory: DeviceInventory,
    groups: Sequence[Group],
    rates: DeviceRates,
    room: int,
    host_room: int | None,
) -> list[State] | None:
    """The states of groups; None where what is looked up on the device has no room."""
    items = inventory.items
    # What a group costs outside the device: the host's memory if all fit there, else, at the margin, the disk.
    sent = sum(group.sent_bytes for group in groups)
    outside: Residency = "host" if host_room is None or sent <= host_room + room else "disk"

    def state(group: Group, residency: Residency) -> State:
        return _state(items[group.first : group.stop], residency, rates)

    def is_looked_up(group: Group) -> bool:
        return not inventory.lookups.items and any(item.lookups for item in items[group.first : group.stop])

    def on_device(group: Group) -> list[State]:
        if is_looked_up(group):
            # Rows are looked up where they are decoded.
            return [state(group, "decoded")]
        # Outside its memory a group takes nothing of it.
        first = state(group, outside)._replace(n_bytes=0)
        return [first, state(group, "compressed"), state(group, "decoded")]

    room -= sum(state(group, "decoded").n_bytes for group in groups if is_looked_up(group))
    if room < 0:
        return None
    chosen = climb([on_device(group) for group in groups], room, spread)
    left = [number for number, found in enumerate(chosen) if found.residency == outside]
    ladders = [[state(groups[number], where) for where in ("disk", "host")] for number in left]
    outside_states = climb(ladders, host_room, lambda _, number: (0.0, spread(0.0, left[number])[1]))
    for number, found in zip(left, outside_states, strict=True):
        chosen[number] = found
    return chosen


def _state(items: Sequence[Item], residency: Residency, rates: DeviceRates) -> State:
    n_bytes = sum(aligned(_bytes_of(item, residency)) for item in items)
    return State(residency, n_bytes, stages(items, residency, rates))


def _bytes_of(item: Item, residency: Residency) -> int:
    if residency == "disk":
        return 0
    return item.part.decoded_bytes if residency == "decoded" else item.sending.sent_bytes


def _stored_only(lookups: Inventory, items: Sequence[Item]) -> int:
    """Stored bytes of embeddings that are not multiplied with too."""
    multiplied = {id(item.part.record) for item in items}
    return sum(i.part.stored_bytes for i in lookups.items if id(i.part.record) not in multiplied)


def staging_bytes(groups: Sequence[Group]) -> int:
    """Host memory of the pinned buffers, and of the one to unpack in."""
    sent = max((group.sent_bytes for group in groups), default=0)
    stored = max((group.stored_bytes for group in groups), default=0)
    return N_STAGING * sent + aligned(stored)


def device_fixed_bytes(inventory: DeviceInventory, groups: Sequence[Group], *, streamed: bool) -> Fixed:
    """Device memory that is held whatever the ceiling: where groups are `streamed`, or where all are decoded."""
    landing = max((group.sent_bytes for group in groups), default=0)
    tables = max((group.table_bytes for group in groups), default=0)
    scratch = max((group.scratch_bytes for group in groups), default=0)
    ring = max((group.decoded_bytes for group in groups), default=0)
    # One landing is enough to load; an error word for each group.
    return Fixed(
        floats=inventory.float_bytes,
        sides=inventory.side_bytes + (inventory.change_bytes if streamed else 0),
        workspace=inventory.workspace_bytes,
        staging=landing * (N_LANDINGS if streamed else 1) + tables + scratch + verdict_bytes(groups),
        ring=ring * N_SLOTS if streamed else 0,
        rows=0,
        values=inventory.values_bytes,
    )


def verdict_bytes(groups: Sequence[Group]) -> int:
    """Room for an error word of each group."""
    return aligned(4 * len(groups))
