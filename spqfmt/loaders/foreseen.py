"""Slots that are filled before anybody asks: the order that is expected, and who has what. Shared by CPU and devices.

Parts are got ready in the order in which they were used the last time. That order is a guess and never decides what is
shown: a slot is lent only for the part that it was filled with.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar


class SlotState(Enum):
    """What a slot is about. On a device READY says that all is given to its queues; an event says when it is done."""

    FREE = 0
    QUEUED = 1
    FILLING = 2
    READY = 3
    LENT = 4


@dataclass(eq=False)
class Slot:
    """Room for one part, whose number is `part` unless the slot is free."""

    state: SlotState = SlotState.FREE
    part: int = -1

    def clear(self) -> None:
        """Make the slot free for another part."""
        self.state, self.part = SlotState.FREE, -1


_Slot = TypeVar("_Slot", bound=Slot)


class Foreseen(Generic[_Slot]):
    """`slots` for parts that were first used in `order`. Who calls sees to locks."""

    def __init__(self, slots: Sequence[_Slot], order: Sequence[int]) -> None:
        self.slots = slots
        self._next = {part: order[(i + 1) % len(order)] for i, part in enumerate(order)}
        self._last = order[-1] if order else None

    def used(self, part: int) -> None:
        """The part is used now: next time it is expected after the one that was used before it."""
        if self._last is not None:
            self._next[self._last] = part
        self._last = part

    def coming(self, n: int) -> Iterator[int]:
        """The `n` parts that are expected next."""
        part = self._last
        for _ in range(n):
            if part is None:
                return
            part = self._next[part]
            yield part

    def holders(self, part: int) -> Iterator[_Slot]:
        """Slots that have the part or are to have it."""
        return (slot for slot in self.slots if slot.part == part and slot.state is not SlotState.FREE)

    def free(self) -> Iterator[_Slot]:
        """Give the slots that are free."""
        return (slot for slot in self.slots if slot.state is SlotState.FREE)

    def surplus(self, *states: SlotState) -> Iterator[_Slot]:
        """Slots of these states, those of the first of them first, and of each the last ones."""
        return (slot for state in states for slot in reversed(self.slots) if slot.state is state)


class ForeseenOrAsked(Foreseen[_Slot]):
    """Slots for parts in the order in which they were used the last time; those of `chosen` ones are asked for."""

    def __init__(self, slots: Sequence[_Slot], order: Sequence[int], chosen: Collection[int]) -> None:
        super().__init__(slots, [part for part in order if part not in chosen])
        self._chosen = frozenset(chosen)
        self._asked: list[int] = []

    def ask(self, parts: Sequence[int]) -> None:
        """These will be used next, and no others that were asked for before."""
        self._asked = list(parts)

    def used(self, part: int) -> None:
        """The part is used now."""
        if part not in self._chosen:
            super().used(part)
        elif part in self._asked:
            self._asked.remove(part)

    def coming(self, n: int) -> Iterator[int]:
        """What was asked for, then what is expected: little of that, so that there are slots for what is asked for."""
        asked = self._asked[:n]
        yield from asked
        yield from super().coming(min(n - len(asked), 1) if self._chosen else n)


class Asked(Foreseen[_Slot]):
    """Slots for parts of which no order is known: what comes is what was asked for, in that order."""

    def __init__(self, slots: Sequence[_Slot]) -> None:
        super().__init__(slots, ())
        self._asked: list[int] = []

    def ask(self, parts: Sequence[int]) -> None:
        """These parts will be used."""
        self._asked += parts

    def wants(self, part: int) -> bool:
        """Whether the part was asked for and is not used yet."""
        return part in self._asked

    def forget(self, parts: Sequence[int]) -> None:
        """Those of the parts that are still to come will not be used any more."""
        for part in parts:
            if part in self._asked:
                self._asked.remove(part)

    def used(self, part: int) -> None:
        """The part is used now, as it was asked for."""
        self.forget((part,))

    def coming(self, n: int) -> Iterator[int]:
        """The first `n` parts that were asked for and are not used yet."""
        return iter(self._asked[:n])
