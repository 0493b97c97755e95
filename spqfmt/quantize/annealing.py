"""Simulated annealing over a vector of choices (JSQ, algorithm 1)."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np

Vector: TypeAlias = tuple[float, ...]
HOTTEST, COLDEST = 300.0, 10.0
"""The first and the last temperature of the paper."""


def temperatures(steps: int) -> Iterator[float]:
    """`steps` temperatures from the hottest to the coldest, each the same fraction of the one before.

    The paper names the ends and not the schedule.
    """
    for step in range(steps):
        yield HOTTEST * (COLDEST / HOTTEST) ** (step / max(1, steps - 1))


def anneal(
    start: Vector,
    choices: Sequence[float],
    steps: int,
    cost: Callable[[Vector, int], float],
    accepted: Callable[[], None],
    generator: np.random.Generator,
) -> tuple[Vector, float]:
    """The vector with the least cost of all that were tried, and that cost.

    `cost(vector, element)` is the perplexity of what `vector` gives, where only `element` differs from the vector
    accepted last (all of them for -1, the start); `accepted` is told when a vector is taken.

    Sign: the paper's performance P is the perplexity here, where less is better. A worse vector is taken with the
    probability 1 - exp(-(P - P_best) / T) of algorithm 1, P_best being the one accepted last. That is a probability for
    this sign alone; for differences far below T it is close to (P - P_best) / T, so the search is all but greedy at
    first, and a little less so as it cools. The usual exp(-(P - P_best) / T) would take nearly every step at these
    temperatures. The best vector ever seen is returned, rather than the last.
    """
    current, current_cost = start, cost(start, -1)
    accepted()
    best, best_cost = current, current_cost
    for temperature in temperatures(steps):
        element = int(generator.integers(len(start)))
        others = [choice for choice in choices if choice != current[element]]
        value = others[int(generator.integers(len(others)))]
        tried = (*current[:element], value, *current[element + 1 :])
        tried_cost = cost(tried, element)
        worse = tried_cost - current_cost
        if worse < 0 or (np.isfinite(worse) and generator.random() < -np.expm1(-worse / temperature)):
            current, current_cost = tried, tried_cost
            accepted()
        if tried_cost < best_cost:
            best, best_cost = tried, tried_cost
    return best, best_cost
