"""The plan of a model on the CPU: one ceiling; parts on disk, compressed in memory, or decoded there."""

from collections.abc import Sequence

from spqfmt.residency.inventory import Inventory, Item
from spqfmt.residency.ladder import Residency, Stages, State, by_saving, check_ceiling, climb
from spqfmt.residency.parts import Part
from spqfmt.residency.plan import Plan, PlannedPart
from spqfmt.residency.rates import Rates


def plan_residency(inventory: Inventory, rates: Rates, memory_bytes: int | None) -> Plan:
    """Give every part a residency under the ceiling; without one everything is decoded.

    Raises MemoryBudgetError, which names the smallest ceiling that works, for a smaller one.
    """
    items = inventory.items
    totals = inventory.totals
    whole, streamed = totals.fixed(streamed=False), totals.fixed(streamed=True)
    smallest = min(whole.total + totals.decoded, streamed.total)
    check_ceiling("memory", memory_bytes, smallest)
    ladders = [_states(item, rates, share_of_passes(item, items)) for item in items]
    if memory_bytes is None or memory_bytes >= whole.total + totals.decoded:
        fixed = whole
        chosen = [ladder[-1] for ladder in ladders]
    else:
        fixed = streamed
        chosen = climb(ladders, memory_bytes - streamed.total, by_saving)
    return Plan(
        memory_bytes=memory_bytes,
        smallest_bytes=smallest,
        in_memory_bytes=totals.in_memory_bytes,
        stored_bytes=totals.stored,
        decoded_bytes=totals.decoded + inventory.side_bytes + inventory.float_bytes,
        fixed=fixed,
        parts=tuple(PlannedPart(item, *state) for item, state in zip(items, chosen, strict=True)),
    )


def _states(item: Item, rates: Rates, share: float) -> tuple[State, ...]:
    part = item.part
    sizes: tuple[tuple[Residency, int], ...] = (
        ("disk", 0), ("compressed", part.stored_bytes), ("decoded", part.decoded_bytes)
    )  # fmt: skip
    return tuple(State(where, n_bytes, _stages(item, where, rates, share)) for where, n_bytes in sizes)


def _stages(item: Item, residency: Residency, rates: Rates, share: float) -> Stages:
    read, decode = fetch_seconds(item.part, residency, rates)
    compute = item.part.n_weights / rates.compute if item.products else 0.0
    return Stages(read * share, 0.0, decode * share, compute * (item.share or 1.0))


def share_of_passes(item: Item, items: Sequence[Item]) -> float:
    """How often a pass over one token needs the part: always, or as often as its expert, or a row that is looked up."""
    if item.products:
        return 1.0 if item.share is None else item.share
    siblings = [other.part for other in items if other.part.record is item.part.record]
    return (item.part.stop - item.part.first) / sum(part.stop - part.first for part in siblings)


def decode_seconds(part: Part, rates: Rates) -> float:
    """Decoding the part once, by one thread."""
    return sum(plane.raw_bytes / rates.decode(plane.codec) for plane in part.planes)


def fetch_seconds(part: Part, residency: Residency, rates: Rates) -> tuple[float, float]:
    """Reading and decoding the part once, where it lives in `residency`."""
    if residency == "decoded":
        return 0.0, 0.0
    return (part.stored_bytes / rates.read if residency == "disk" else 0.0), decode_seconds(part, rates)
