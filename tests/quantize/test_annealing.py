"""The annealing: schedule, acceptance, and what it returns."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from spqfmt.quantize.annealing import Vector, anneal, temperatures
from spqfmt.quantize.base import MethodOptions
from spqfmt.quantize.jsq import METHOD

CHOICES = (0.0, 1.0, 2.0)


def test_from_hot_to_cold() -> None:
    values = list(temperatures(5))
    assert values[0] == 300
    assert values[-1] == pytest.approx(10)
    assert np.allclose(np.diff(np.log(values)), np.log(10 / 300) / 4)
    assert list(temperatures(0)) == []


class Sum:
    """A cost that is 100 plus the sum, and what was asked of it."""

    def __init__(self) -> None:
        self.current: Vector = ()
        self.tried: list[tuple[Vector, int]] = []

    def cost(self, vector: Vector, element: int) -> float:
        if element >= 0:
            changed = [i for i, (a, b) in enumerate(zip(self.current, vector, strict=True)) if a != b]
            assert changed == [element]
        self.tried.append((vector, element))
        return 100 + sum(vector)

    def accepted(self) -> None:
        self.current = self.tried[-1][0]


def test_one_element_changes_and_the_best_comes_back() -> None:
    model = Sum()
    best, cost = anneal((2.0,) * 4, CHOICES, 200, model.cost, model.accepted, np.random.default_rng(0))
    assert (best, cost) == ((0.0,) * 4, 100)
    assert len(model.tried) == 201


def test_without_steps_the_start_stays() -> None:
    model = Sum()
    assert anneal((1.0, 2.0), CHOICES, 0, model.cost, model.accepted, np.random.default_rng(0)) == (
        (1.0, 2.0),
        103,
    )


def worse_ones_taken(difference: float) -> float:
    """Share of the steps at the coldest temperatures that take a vector worse by `difference`."""
    n_tried, n_taken = 0, 0
    for seed in range(2000):
        taken: list[int] = []
        costs = iter([0.0, difference])
        anneal(
            (0.0,),
            (0.0, 1.0),
            1,
            lambda vector, element, costs=costs: next(costs),
            lambda taken=taken: taken.append(1),
            np.random.default_rng(seed),
        )
        n_tried += 1
        n_taken += len(taken) - 1
    return n_taken / n_tried


def test_worse_vectors_are_taken_as_algorithm_1_says() -> None:
    # One step is at T = 300.
    for difference in (30.0, 300.0):
        assert worse_ones_taken(difference) == pytest.approx(1 - np.exp(-difference / 300), abs=0.04)
    assert worse_ones_taken(np.inf) == 0
    assert worse_ones_taken(np.nan) == 0


@dataclass
class Model:
    """Trials whose perplexity is 100 without editing and `edited` with any vector."""

    edited: float
    sites: tuple[tuple[int, str], ...] = ((0, "a"), (0, "b"), (1, "c"))
    asked: list[tuple[object, int]] = field(default_factory=list)

    def choose(self, n_samples: int) -> None:
        assert n_samples == 4

    def perplexity(self, options: MethodOptions, first_block: int = 0) -> float:
        self.asked.append((options.editing, first_block))
        return 100.0 if options.editing == {} else self.edited

    def accept(self) -> None: ...

    def stage(self, text: str) -> None: ...


@pytest.mark.parametrize(("edited", "kept"), [(99.0, True), (100.0, False), (101.0, False)])
def test_jsq_edits_only_where_the_model_is_better_for_it(edited: float, kept: bool) -> None:
    model = Model(edited)
    options = METHOD.search(model, METHOD.check(MethodOptions(search_steps=3)))
    assert options.editing is not None
    assert set(options.editing) == ({"a", "b", "c"} if kept else set())
    # The start and the vector without editing are of the whole model, steps from the block that they change.
    assert [first for _, first in (model.asked[0], model.asked[-1])] == [0, 0]
    assert len(model.asked) == 5
    assert {first for _, first in model.asked[1:-1]} <= {0, 1}
