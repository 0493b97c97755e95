"""The choice that every plan is made of: states of parts, under one ceiling of memory.

Each part begins at the first of its states and is moved to others that save time and take bytes. The moves that save
most time a byte are made first, as long as there is room, so that no room is left that could hold another one; Double
Compression's speed-adaptive rule is the same choice at pack time. The CPU has one ceiling; a device has two, its own
memory, and the host's for what is left. A further way to hold a part is one more state.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple, TypeAlias

from spqfmt.errors import MemoryBudgetError

Residency = Literal["decoded", "narrow", "compressed", "host", "disk"]
"""`narrow`: 8-bit codes of low entropy in 4 bits and escapes, from which products are as fast as from decoded ones."""


class Stages(NamedTuple):
    """Seconds that one pass over one token takes on each stream."""

    read: float
    copy: float
    decode: float
    compute: float


class State(NamedTuple):
    """One way to hold a part: the bytes that it occupies there, and what a pass costs."""

    residency: Residency
    n_bytes: int
    stages: Stages


Rank: TypeAlias = Callable[[float, int], tuple[float, float]]
"""(seconds saved a byte, number of the part) -> what moves are sorted by."""


def by_saving(saved: float, number: int) -> tuple[float, float]:
    """What saves most a byte first, then in the order of use."""
    return -saved, float(number)


_GOLDEN = (5**0.5 - 1) / 2
_ALIKE = 1.1
"""Moves whose savings a byte differ by less than this factor count as equal."""


def spread(saved: float, number: int) -> tuple[float, float]:
    """What saves most a byte first; of parts that are alike, every part of the model has the same chance.

    So the work that is left for slower streams comes evenly over the model, and hides behind the rest.
    """
    grade = round(math.log(min(max(saved, 1e-30), 1e30)) / math.log(_ALIKE))
    return -grade, number * _GOLDEN % 1.0


class _Move(NamedTuple):
    """Take part `number` from state `before` to state `after` of its ladder."""

    saved: float
    number: int
    before: int
    after: int
    n_bytes: int


def climb(ladders: Sequence[Sequence[State]], room: int | None, rank: Rank) -> list[State]:
    """The state of each part, when `room` bytes may be taken beyond the first states; None for any number."""
    moves = [move for number, ladder in enumerate(ladders) for move in _moves(number, ladder)]
    moves.sort(key=lambda move: rank(move.saved, move.number))
    at = [0] * len(ladders)
    left = math.inf if room is None else room
    # A move that found no room may find its step before made later, so one more round.
    for _ in range(2):
        for move in moves:
            if at[move.number] == move.before and move.n_bytes <= left:
                at[move.number] = move.after
                left -= move.n_bytes
    return [ladder[state] for ladder, state in zip(ladders, at, strict=True)]


def _moves(number: int, ladder: Sequence[State]) -> Iterator[_Move]:
    """The moves from each state that is worth its bytes to the next one, and from the first to all of them."""

    def move(before: int, after: int) -> _Move:
        n_bytes = ladder[after].n_bytes - ladder[before].n_bytes
        one, other = ladder[before].stages, ladder[after].stages
        # Computing, which mostly takes the same time in both, apart: so it changes no last bit of the others.
        seconds = sum(one[:-1]) - sum(other[:-1]) + (one.compute - other.compute)
        return _Move(
            saved=seconds / n_bytes if n_bytes > 0 else math.inf,
            number=number,
            before=before,
            after=after,
            n_bytes=n_bytes,
        )

    worth = [0]
    for state in range(1, len(ladder)):
        # A state is worth its bytes only where a later one does not save more for each.
        later = range(state + 1, len(ladder))
        saved = move(worth[-1], state).saved
        if all(
            saved > move(worth[-1], other).saved and ladder[state].n_bytes < ladder[other].n_bytes
            for other in later
        ):
            worth.append(state)
    for before, after in (*pairwise(worth), *((0, after) for after in worth[2:])):
        found = move(before, after)
        # On a device weights may take less time compressed than decoded.
        if found.saved >= 0:
            yield found


def check_ceiling(name: str, ceiling: int | None, smallest: int) -> None:
    """Raise MemoryBudgetError, which names the smallest ceiling that works, for a smaller one."""
    if ceiling is not None and ceiling < smallest:
        shown = f"{ceiling / 2**20:.1f} MiB" if ceiling >= 1 << 17 else f"{ceiling} bytes"
        raise MemoryBudgetError(
            f"{name} {shown} is too small: this model needs at least {enough_mib(smallest)} "
            f"({smallest} bytes), without activations and KV cache",
            smallest,
        )


def enough_mib(n_bytes: int) -> str:
    """Bytes in MiB, rounded up: a ceiling that is typed as it was read is enough."""
    return f"{math.ceil(n_bytes / 2**20 * 10) / 10:.1f} MiB"
