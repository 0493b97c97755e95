"""What loading packed weights asks of the machine: of the page cache, of threads, and of rates that it needs not."""

from pathlib import Path

import pytest
import torch
from test_model import logits

import spqfmt
from spqfmt.container.reader import Reader
from spqfmt.kernels.context import Context, using
from spqfmt.loaders.plan import plan_model
from spqfmt.residency.rates import UNMEASURED, Rates


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Places of files that were dropped from the page cache."""
    places: list[tuple[int, int]] = []
    monkeypatch.setattr(Reader, "forget", lambda _, offset, n_bytes: places.append((offset, n_bytes)))
    return places


def test_only_under_a_ceiling_what_was_read_leaves_the_page_cache(
    packed_llama: Path, forgotten: list[tuple[int, int]]
) -> None:
    free, _ = spqfmt.load_model(packed_llama, packed=True)
    free.packed_weights.close()
    assert not forgotten
    bounded, _ = spqfmt.load_model(packed_llama, memory=plan_model(packed_llama).plan.held_bytes)
    parts = bounded.packed_weights.plan.parts
    bounded.packed_weights.close()
    assert {(p.item.part.offset, p.item.part.stored_bytes) for p in parts} <= set(forgotten)


def test_rates_are_measured_only_where_they_decide(
    packed_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[Path] = []

    def measure(reader: Reader) -> Rates:
        measured.append(reader.path)
        return UNMEASURED

    monkeypatch.setattr("spqfmt.loaders.model.measure_rates", measure)
    for options in ({"packed": True}, {"memory": "1GiB"}):
        model, _ = spqfmt.load_model(packed_llama, **options)
        model.packed_weights.close()
    assert measured == [packed_llama]


@pytest.mark.parametrize("memory", [None, "1GiB"])
def test_more_threads_than_buffers_load_the_same_weights(packed_llama: Path, memory: str | None) -> None:
    found = []
    for threads in (1, 8):
        with using(Context(threads=threads)):
            model, _ = spqfmt.load_model(packed_llama, packed=memory is None or None, memory=memory)
            found.append(logits(model))
        held = model.packed_weights.held_bytes + sum(p.nbytes for p in model.parameters())
        assert held == model.packed_weights.plan.held_bytes
        model.packed_weights.close()
    assert torch.equal(*found)
