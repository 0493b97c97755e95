"""What pages are made of, without a browser."""

import hashlib
import json
import re
from importlib.resources import files as resources
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from files import HOSTILE
from hypothesis import given
from hypothesis import strategies as st

from spqfmt.pages.compact import MEASURED_CHARACTERS, compact, pack_counts
from spqfmt.pages.inspect import inspect_page
from spqfmt.pages.palette import DARK, LIGHT, N_STEPS, SERIES
from spqfmt.pages.render import embed
from spqfmt.pages.squarify import Box, squarify
from spqfmt.pages.text import change, integer, percent, relative_error, size
from spqfmt.reading.measure import measure_file
from spqfmt.reading.report import inspect_file
from spqfmt.residency.rates import Rates

VECTORS = Path(__file__).parents[2] / "spec/vectors/valid"
VENDORED = resources("spqfmt.pages") / "vendored"


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("palette", [LIGHT, DARK])
def test_text_stands_out_and_shades_grow_steadily(palette: dict[str, str]) -> None:
    for text in ("text", "muted", "accent"):
        assert contrast(palette[text], palette["background"]) >= 4.5
    assert contrast(palette["muted"], palette["surface"]) >= 4.5
    steps = [palette[f"step-{i}"] for i in range(N_STEPS)]
    for i, step in enumerate(steps):
        assert contrast(palette[f"on-{i}"], step) >= 4.5
    weights = [contrast(step, palette["background"]) for step in steps]
    assert weights == sorted(weights)


# Linear RGB as people see it who lack one kind of cones (Vienot, Brettel and Mollon 1999).
RED_BLIND = np.array([[0.112, 0.888, 0.0], [0.112, 0.888, 0.0], [0.004, -0.004, 1.0]])
GREEN_BLIND = np.array([[0.293, 0.707, 0.0], [0.293, 0.707, 0.0], [-0.021, 0.021, 1.0]])


@pytest.mark.parametrize(
    "sight", [np.eye(3), RED_BLIND, GREEN_BLIND], ids=["all", "red blind", "green blind"]
)
def test_hues_of_series_are_told_apart_by_everybody(sight: Any) -> None:
    assert LIGHT.keys() == DARK.keys()
    seen = []
    for colour in SERIES:
        channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        seen.append(255 * np.clip(sight @ channels**2.2, 0, 1) ** (1 / 2.2))
    for one, other in combinations(seen, 2):
        assert np.linalg.norm(one - other) > 25


@given(st.text())
def test_no_text_ends_the_data_element_and_all_of_it_comes_back(text: str) -> None:
    embedded = str(embed({"name": text}))
    assert not set(embedded) & set("<>&\u2028\u2029")
    assert json.loads(embedded) == {"name": text}


def test_numbers_that_json_does_not_have_are_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        embed(float("nan"))


def test_the_vendored_scripts_are_those_of_the_manifest_with_their_licence() -> None:
    manifest = json.loads((VENDORED / "manifest.json").read_text("utf-8"))
    licence = (VENDORED / "LICENSE").read_text("utf-8")
    for name, pinned in manifest.items():
        script = (VENDORED / f"{name}.min.js").read_bytes()
        assert hashlib.sha256(script).hexdigest() == pinned["sha256"], name
        assert name in licence
    assert len(manifest) == sum(entry.name.endswith(".js") for entry in VENDORED.iterdir())


def test_a_page_is_one_file_that_names_no_other(model: Path, page: Path) -> None:
    text = page.read_text("utf-8")
    style, script = re.search("<style>(.*?)</style>", text, re.S), text.rindex("<script>")
    assert style is not None
    markup = text[:script].replace(style[1], "")
    assert re.findall(r'(?:src|href)="(?!data:|#)', markup) == []
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    assert model.name in markup
    assert "Permission to use, copy, modify" in text


def test_the_same_file_and_rates_give_the_same_page(model: Path, rates: Rates) -> None:
    report = inspect_file(model)
    assert inspect_page(report, model, rates) == inspect_page(report, model, rates)


def test_a_page_without_measurements_says_how_to_get_them(model: Path, rates: Rates) -> None:
    page = inspect_page(inspect_file(model), model, rates)
    assert f"spqfmt inspect {model.name} --measure --html page.html" in page


def test_names_are_escaped_in_markup_and_in_data(hostile: Path) -> None:
    text = hostile.read_text("utf-8")
    assert "<b onclick" not in text
    assert HOSTILE not in text
    assert text.count("</script>") == 2
    assert "&lt;b onclick=alert(2)&gt;&amp;.spq" in text


@pytest.mark.parametrize(
    "vector",
    [
        path for path in sorted(VECTORS.glob("*.spq*")) if "-of-" not in path.name
    ],  # shards are shown by their index
    ids=lambda path: path.name,
)
def test_every_valid_file_has_a_page(vector: Path, rates: Rates) -> None:
    report = measure_file(vector, inspect_file(vector))
    assert vector.name in inspect_page(report, vector, rates)


def test_measurements_are_bounded_and_the_largest_tensors_come_first(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = measure_file(model, inspect_file(model))
    every = compact(report, "m")["measured"]
    assert isinstance(every, dict)
    assert len(json.dumps(every)) < MEASURED_CHARACTERS
    monkeypatch.setattr("spqfmt.pages.compact.MEASURED_CHARACTERS", len(json.dumps(every)) // 3)
    few = compact(report, "m")["measured"]
    assert isinstance(few, dict)
    largest = sorted(range(len(report.tensors)), key=lambda i: -report.tensors[i].stored_bytes)
    assert 0 < len(few) < len(every)
    assert set(few) == {str(i) for i in largest[: len(few)]}


@given(st.lists(st.integers(0, 2**40)))
def test_counts_take_seven_bits_a_byte(counts: list[int]) -> None:
    import base64

    found, value, shift = [], 0, 0
    for byte in base64.b64decode(pack_counts(counts)):
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            found.append(value)
            value = shift = 0
    assert found == counts


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=40), st.floats(0.2, 5))
def test_areas_fill_their_rectangle_in_proportion(values: list[int], width: float) -> None:
    boxes = squarify(values, Box(0, 0, width, 1))
    for value, box in zip(values, boxes, strict=True):
        assert box.width * box.height == pytest.approx(width * value / sum(values), rel=1e-6)
        assert box.x >= 0
        assert box.y >= 0
        assert box.x + box.width <= width * (1 + 1e-6)
        assert box.y + box.height <= 1 + 1e-6


def test_numbers_for_people() -> None:
    assert [size(n) for n in (0, 999, 1500, 120_860_309, 8.9e9, 2e12)] == [
        "0 B", "999 B", "1.5 kB", "120.9 MB", "8.9 GB", "2.00 TB"
    ]  # fmt: skip
    assert [percent(s) for s in (0, 0.00001, 0.0045, 0.196, 1)] == [
        "0.00 %",
        "< 0.01 %",
        "0.45 %",
        "19.6 %",
        "100.0 %",
    ]
    assert [change(x) for x in (0.0083, -0.25)] == ["+0.83 %", "-25.00 %"]
    assert [relative_error(x) for x in (0.12345, 0)] == ["12.345 %", "0"]
    assert integer(1234567) == "1\u202f234\u202f567"
