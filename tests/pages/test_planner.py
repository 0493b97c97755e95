"""The script's planner against the package's, on inventories of every kind."""

import random
from importlib.resources import files
from pathlib import Path

import pytest
from browser import Browser

from spqfmt.codecs.registry import CODECS
from spqfmt.pages.residency import residency_data
from spqfmt.records import Chunk, Chunks, PlaneChunk, Stream, TensorRecord
from spqfmt.residency.cpu import plan_residency
from spqfmt.residency.inventory import Inventory, Item
from spqfmt.residency.parts import Part
from spqfmt.residency.rates import Rates
from spqfmt.wire import CODEC_RANS, CODEC_RAW, CODEC_ZSTD

PLANNER = (files("spqfmt.pages") / "static" / "planner.js").read_text("utf-8")


def item(draw: random.Random, number: int) -> Item:
    """A part of up to 100 bytes, whose stored bytes may be more than the decoded ones."""
    raw = draw.randint(1, 100)
    codec = draw.choice([CODEC_RANS, CODEC_RAW, CODEC_ZSTD])
    stored = raw if codec == CODEC_RAW else draw.randint(1, raw + 5)
    chunk = Chunk(0, raw, (PlaneChunk(64, stored, raw, codec, 0),))
    codes = Stream("codes", "i8", raw, Chunks.of([chunk]))
    record = TensorRecord(
        f"layer.{number}", (1, raw), "bf16", "uniform", "", {"orientation": "rows"}, (codes,)
    )
    lookups = draw.random() < 0.1
    return Item(Part(record, 0, (chunk,), 0, 1, True), not lookups or draw.random() < 0.5, lookups)


def inventory(seed: int) -> tuple[Inventory, Rates]:
    draw = random.Random(seed)
    items = tuple(item(draw, number) for number in range(draw.randint(1, 25)))
    rates = Rates(
        *(10 ** draw.uniform(7, 10) for _ in range(2)), {name: 10 ** draw.uniform(7, 10) for name in CODECS}
    )
    return Inventory(items, draw.randint(0, 50), draw.randint(0, 50), draw.randint(0, 50)), rates


def test_every_ceiling_of_every_inventory_is_planned_alike(browser: Browser, page: Path) -> None:
    browser.open(page)  # for its D3
    kinds = set()
    for seed in range(60):
        stock, rates = inventory(seed)
        whole = plan_residency(stock, rates, None)
        ceilings = list(range(whole.smallest_bytes, whole.held_bytes + 8, 7))
        planned = browser.run(
            PLANNER + "const [data, ceilings] = arguments, prepared = planner(data);"
            "return [limits(data), ceilings.map((c) => planUnder(prepared, c)), "
            "planUnder(prepared, prepared.smallest - 1) === undefined];",
            residency_data(stock, rates),
            ceilings,
        )
        is_narrow = any(part.residency == "narrow" for part in whole.parts)
        assert planned[0] == {
            "whole": whole.held_bytes,
            "smallest": whole.smallest_bytes,
            "isNarrow": is_narrow,
        }
        assert planned[2]
        for ceiling, found in zip(ceilings, planned[1], strict=True):
            expected = plan_residency(stock, rates, ceiling)
            assert found["residencies"] == [part.residency for part in expected.parts], (seed, ceiling)
            assert found["heldBytes"] == expected.held_bytes
            assert found["serial"] == pytest.approx(expected.serial_ms)
            assert found["overlapped"] == pytest.approx(expected.overlapped_ms)
            kinds |= set(found["residencies"])
    assert kinds == {"decoded", "narrow", "compressed", "disk"}
