"""Which part lives where under a ceiling: pure functions from sizes and rates to a plan.

Each part starts on disk. Moving it to compressed memory saves its read on every pass, decoding it saves the decoding
too; the moves that save most time a byte are made first, as long as there is room, so that no room is left that could
hold another one. DESIGN.md section 7; Double Compression's speed-adaptive rule is the same choice at pack time.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from spqfmt.errors import MemoryBudgetError
from spqfmt.residency.inventory import Fixed, Inventory, Item
from spqfmt.residency.parts import Part
from spqfmt.residency.rates import Rates

Residency = Literal["decoded", "compressed", "host", "disk"]


@dataclass(frozen=True)
class PlannedPart:
    """Where a part lives. `bytes`: what it occupies there, 0 on disk; `expected_ms` of one pass over one token."""

    item: Item
    residency: Residency
    bytes: int
    expected_ms: float

    @property
    def name(self) -> str:
        """Tensor, and channels where they are not all."""
        return self.item.part.name


@dataclass(frozen=True)
class Plan:
    """What is held where. `memory_bytes` is the ceiling, None for none; `held_bytes` what the plan uses of it.

    `in_memory_bytes` is the smallest ceiling that has room for all weights, compressed or decoded.
    `serial_ms` and `overlapped_ms` predict one token: reading, decoding and computing one after the other, or
    the longer of computing and the rest (Double Compression's latency model).
    """

    memory_bytes: int | None
    smallest_bytes: int
    stored_bytes: int
    decoded_bytes: int
    fixed: Fixed
    parts: tuple[PlannedPart, ...]
    serial_ms: float
    overlapped_ms: float
    in_memory_bytes: int

    @property
    def held_bytes(self) -> int:
        """Bytes of memory that the plan takes."""
        return self.fixed.total + sum(part.bytes for part in self.parts)

    def bytes_in(self, residency: Residency) -> int:
        """Bytes that parts of one residency occupy."""
        return sum(part.bytes for part in self.parts if part.residency == residency)

    def to_json(self) -> dict[str, object]:
        """The object that `spqfmt plan --json` prints."""
        return {
            "memory_bytes": self.memory_bytes,
            "smallest_bytes": self.smallest_bytes,
            "in_memory_bytes": self.in_memory_bytes,
            "held_bytes": self.held_bytes,
            "weights_bytes": {"stored": self.stored_bytes, "decoded": self.decoded_bytes},
            "fixed_bytes": vars(self.fixed) | {"total": self.fixed.total},
            "expected_ms": {"serial": self.serial_ms, "overlapped": self.overlapped_ms},
            "layers": [
                {
                    "name": part.name,
                    "residency": part.residency,
                    "bytes": part.bytes,
                    "expected_ms": part.expected_ms,
                }
                for part in self.parts
            ],
        }


def plan_residency(inventory: Inventory, rates: Rates, memory_bytes: int | None) -> Plan:
    """Give every part a residency under the ceiling; without one everything is decoded.

    Raises MemoryBudgetError, which names the smallest ceiling that works, for a smaller one.
    """
    items = inventory.items
    totals = inventory.totals
    whole, streamed = totals.fixed(streamed=False), totals.fixed(streamed=True)
    decoded = totals.decoded
    smallest = min(whole.total + decoded, streamed.total)
    if memory_bytes is not None and memory_bytes < smallest:
        raise MemoryBudgetError(
            f"memory {memory_bytes / 2**20:.1f} MiB is too small: this model needs at least {enough_mib(smallest)} "
            f"({smallest} bytes), without activations and KV cache",
            smallest,
        )
    if memory_bytes is None or memory_bytes >= whole.total + decoded:
        fixed = whole
        residencies: list[Residency] = ["decoded"] * len(items)
    else:
        fixed = streamed
        residencies = _fill(items, rates, memory_bytes - streamed.total)
    parts = tuple(
        _planned(item, residency, rates, share_of_passes(item, items))
        for item, residency in zip(items, residencies, strict=True)
    )
    computing = sum(compute_ms(item, rates) for item in items)
    serial = sum(part.expected_ms for part in parts)
    return Plan(
        memory_bytes,
        smallest,
        totals.stored,
        decoded + inventory.side_bytes + inventory.float_bytes,
        fixed,
        parts,
        serial,
        max(computing, serial - computing),
        totals.in_memory_bytes,
    )


def enough_mib(n_bytes: int) -> str:
    """In MiB, rounded up: a ceiling that is typed as it was read is enough."""
    return f"{math.ceil(n_bytes / 2**20 * 10) / 10:.1f} MiB"


class _Move(NamedTuple):
    """Take part `number` from `before` to `after`."""

    saved_ms_per_byte: float
    number: int
    before: Residency
    after: Residency
    n_bytes: int


def _fill(items: Sequence[Item], rates: Rates, room: int) -> list[Residency]:
    moves = [
        move
        for number, item in enumerate(items)
        for move in _moves(number, item, rates, share_of_passes(item, items))
    ]
    moves.sort(key=lambda move: (-move.saved_ms_per_byte, move.number))
    residencies: list[Residency] = ["disk"] * len(items)
    # A move that found no room may find its step before made later, so one more round.
    for _ in range(2):
        for move in moves:
            if residencies[move.number] == move.before and move.n_bytes <= room:
                residencies[move.number] = move.after
                room -= move.n_bytes
    return residencies


def _moves(number: int, item: Item, rates: Rates, share: float) -> Iterator[_Move]:
    part = item.part
    states: list[tuple[Residency, int]] = [
        ("disk", 0), ("compressed", part.stored_bytes), ("decoded", part.decoded_bytes)
    ]  # fmt: skip
    times = [fetch_ms(part, residency, rates) * share for residency, _ in states]

    def move(a: int, b: int) -> _Move:
        n_bytes = states[b][1] - states[a][1]
        saved = (times[a] - times[b]) / n_bytes if n_bytes > 0 else float("inf")
        return _Move(saved, number, states[a][0], states[b][0], n_bytes)

    first, second, both = move(0, 1), move(1, 2), move(0, 2)
    # Compressed memory is worth its bytes only where decoded memory does not save more for each.
    if first.saved_ms_per_byte > both.saved_ms_per_byte and states[1][1] < states[2][1]:
        yield first
        yield second
    yield both


def share_of_passes(item: Item, items: Sequence[Item]) -> float:
    """How often a pass over one token needs the part: always, or as often as a row of it is looked up."""
    if item.products:
        return 1.0
    siblings = [other.part for other in items if other.part.record is item.part.record]
    return (item.part.stop - item.part.first) / sum(part.stop - part.first for part in siblings)


def decode_seconds(part: Part, rates: Rates) -> float:
    """Decoding the part once, by one thread."""
    return sum(plane.raw_bytes / rates.decode(plane.codec) for plane in part.planes)


def fetch_ms(part: Part, residency: Residency, rates: Rates) -> float:
    """Reading and decoding the part once, where it lives in `residency`."""
    if residency == "decoded":
        return 0.0
    return 1e3 * (
        decode_seconds(part, rates) + (part.stored_bytes / rates.read if residency == "disk" else 0.0)
    )


def compute_ms(item: Item, rates: Rates) -> float:
    """The product of one token with the part."""
    return 1e3 * item.part.n_weights / rates.compute if item.products else 0.0


def _planned(item: Item, residency: Residency, rates: Rates, share: float) -> PlannedPart:
    sizes: dict[Residency, int] = {
        "disk": 0, "compressed": item.part.stored_bytes, "decoded": item.part.decoded_bytes
    }  # fmt: skip
    expected = fetch_ms(item.part, residency, rates) * share + compute_ms(item, rates)
    return PlannedPart(item, residency, sizes[residency], expected)
