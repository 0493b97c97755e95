"""The plan of a model on the CPU: one ceiling; parts on disk, or in memory: compressed, narrow or decoded."""

from collections.abc import Sequence

from spqfmt.residency.inventory import Inventory, Item
from spqfmt.residency.ladder import Residency, Stages, State, by_saving, check_ceiling, climb
from spqfmt.residency.parts import Part
from spqfmt.residency.plan import Plan, PlannedPart
from spqfmt.residency.rates import Rates


def plan_residency(inventory: Inventory, rates: Rates, memory_bytes: int | None) -> Plan:
    """Give every part a residency under the ceiling; without one everything is decoded, or narrow where that is less.

    Raises MemoryBudgetError, which names the smallest ceiling that works, for a smaller one.
    """
    items = inventory.items
    totals = inventory.totals
    whole, streamed = totals.fixed(streamed=False), totals.fixed(streamed=True)
    smallest = min(whole.total + totals.decoded, streamed.total)
    check_ceiling("memory", memory_bytes, smallest)
    ladders = [_states(item, rates, share_of_passes(item, items)) for item in items]
    # What is narrow passes through the buffers where there are many tokens.
    narrow = streamed.total + sum(ladder[-1].n_bytes for ladder in ladders)
    is_less = narrow < whole.total + totals.decoded and any(map(is_narrow, items))
    if memory_bytes is None or memory_bytes >= (narrow if is_less else whole.total + totals.decoded):
        fixed = streamed if is_less else whole
        chosen = [
            ladder[-1] if is_less else _decoded(item, rates)
            for item, ladder in zip(items, ladders, strict=True)
        ]
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
    last: tuple[Residency, int] = ("decoded", part.decoded_bytes)
    if is_narrow(item):
        # Products are as fast as from decoded codes, so that decoding has no use.
        last = ("narrow", part.narrow_bytes)
    sizes: tuple[tuple[Residency, int], ...] = (("disk", 0), ("compressed", part.stored_bytes), last)
    return tuple(State(where, n_bytes, _stages(item, where, rates, share)) for where, n_bytes in sizes)


def is_narrow(item: Item) -> bool:
    """Whether a part may be held narrow.

    Not that of an expert, whose places in memory are for any of them, nor codes in groups, whose products would be
    slower by a fifth to two fifths.
    """
    part = item.part
    return part.narrow_bytes > 0 and item.share is None and part.record.scheme == "uniform"


def _decoded(item: Item, rates: Rates) -> State:
    return State("decoded", item.part.decoded_bytes, _stages(item, "decoded", rates, 1.0))


def _stages(item: Item, residency: Residency, rates: Rates, share: float) -> Stages:
    read, decode = fetch_seconds(item.part, residency, rates)
    compute = item.part.n_weights / rates.compute if item.products else 0.0
    return Stages(read * share, 0.0, decode * share, compute * (item.share or 1.0))


def share_of_passes(item: Item, items: Sequence[Item]) -> float:
    """How often a pass over one token needs the part: always, or as often as its expert, and for a row looked up."""
    products = 0.0 if not item.products else 1.0 if item.share is None else item.share
    if not item.lookups:
        return products
    siblings = [other.part for other in items if other.part.record is item.part.record]
    return products + (item.part.stop - item.part.first) / sum(part.stop - part.first for part in siblings)


def decode_seconds(part: Part, rates: Rates) -> float:
    """Decoding the part once, by one thread."""
    return sum(plane.raw_bytes / rates.decode(plane.codec) for plane in part.planes)


def fetch_seconds(part: Part, residency: Residency, rates: Rates) -> tuple[float, float]:
    """Reading and decoding the part once, where it lives in `residency`."""
    if residency in {"decoded", "narrow"}:
        return 0.0, 0.0
    return (part.stored_bytes / rates.read if residency == "disk" else 0.0), decode_seconds(part, rates)
