"""The tools of the table of methods: keys, order, the frontier, and what they write."""

import json
import sys
from pathlib import Path
from typing import Any

import evaluate_methods
import frontier
import method_results
import pytest
from method_rows import ROWS, Row

from spqfmt.packing.options import pack_options
from spqfmt.quantize.registry import METHODS


def entry(method: str, settings: str, stored: float | None, kl: float | None, **more: Any) -> dict[str, Any]:
    plain = {"model": "m", "method": method, "settings": settings, "series": "", "calibration": "32 x 512"}
    sizes = {
        "raw": None,
        "paper": 4.25,
        "cr": None,
        "outliers": 0.0125,
        "ratio": 3.5,
        "file_bytes": 2_500_000,
    }
    costs = {"seconds": 12.3, "peak_mb": 345.6, "perplexity": 20.0, "tokens": 511}
    return plain | sizes | costs | {"stored": stored, "kl": kl} | more


def test_no_two_rows_share_a_title() -> None:
    assert len({row.title for row in ROWS}) == len(ROWS)


def test_rows_of_others_are_few() -> None:
    assert {row.method for row in ROWS} - METHODS.keys() == {"gguf", "gptaq", "trellis"}


@pytest.mark.parametrize("row", [row for row in ROWS if row.method in METHODS], ids=lambda row: row.title)
def test_every_row_is_a_pack_that_the_command_line_takes(row: Row) -> None:
    options = evaluate_methods.pack_options(row, {"samples": 32, "seq-len": 512})
    given: dict[str, Any] = {name.replace("-", "_"): value for name, value in options.items()}
    if "threshold" in given:
        given["threshold"] = float(given["threshold"])
    assert pack_options(method=row.method, **given).method.name == row.method


def test_a_row_calibrates_with_its_own_samples_where_it_names_some() -> None:
    [row] = [row for row in ROWS if row.title == "spqr 3 bits, threshold 0.2, 128 samples"]
    assert row.samples == 128
    assert "samples" not in evaluate_methods.pack_options(
        Row("rtn", "", {"bits": 4}, calibrated=False), {"samples": 9}
    )


def test_a_row_is_found_again_by_all_that_its_figures_depend_on() -> None:
    row = Row("spqr", "3 bits")
    keys = {
        method_results.key_of("m", row, {"bits": 3}),
        method_results.key_of("m", row, {"bits": 4}),
        method_results.key_of("n", row, {"bits": 3}),
    }
    assert len(keys) == 3
    assert method_results.key_of("m", row, {"b": 1, "a": 2}) == method_results.key_of(
        "m", row, {"a": 2, "b": 1}
    )


def test_results_keep_what_another_run_has_added(tmp_path: Path) -> None:
    mine, theirs = (method_results.Results(tmp_path / "results.json") for _ in range(2))
    assert mine.read() == {}
    mine.add("a", entry("rtn", "", 4.0, 9.0))
    theirs.add("b", entry("gptq", "", 4.0, 8.0))
    mine.add("a", entry("rtn", "", 4.0, 7.0))
    assert {key: e["kl"] for key, e in theirs.read().items()} == {"a": 7.0, "b": 8.0}
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_the_table_has_the_rows_in_order_and_the_claims() -> None:
    rows = {
        "1": entry("spqr", "3 bits, threshold 0.2", 3.9, 260.5),
        "2": entry("gone", "a row that was removed", 1.0, 1.0),
        "3": entry("lossless", "", None, 0.0, paper=None, outliers=None),
    }
    lines = method_results.table(rows).splitlines()
    assert lines[0] == "### m (511 tokens scored)"
    head, first, second, third = lines[2], *lines[4:7]
    assert head.count("|") == first.count("|") == third.count("|")
    assert first.startswith("| lossless |  | 32 x 512 |  |  |  |  |")
    assert second == (
        "| spqr | 3 bits, threshold 0.2 | 32 x 512 |  | 4.25 | 3.90 | 1.25% |  | 3.50 | 20.00 | 260.5 | 12 | 346 |"
    )
    assert third.startswith("| gone |")
    assert any("LLaMA-65B" in line for line in lines)


def test_the_frontier_is_what_no_other_point_beats() -> None:
    entries = [
        entry("lossless", "", None, 0.0),
        entry("a", "", 4.0, 10.0),
        entry("b", "more bits, more loss", 4.5, 11.0),
        entry("c", "", 3.0, 50.0),
        entry("d", "same bits, more loss", 3.0, 60.0),
        entry("e", "", 5.0, 1.0),
    ]
    assert [e["method"] for e in frontier.points(entries)] == ["c", "d", "a", "b", "e"]
    assert [e["method"] for e in frontier.frontier(entries)] == ["c", "a", "e"]
    text = frontier.table("m", entries)
    assert "perplexity 20.00 before" in text
    assert [line.split("|")[6].strip() for line in text.splitlines()[4:]] == [
        "**c**",
        "d",
        "**a**",
        "b",
        "**e**",
    ]


def test_table_and_plots_come_from_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    rows = {
        "1": entry("spqr", "3", 3.9, 260.0, series="spqr"),
        "2": entry("spqr", "4", 4.5, 90.0, series="spqr"),
        "3": entry("dc", "", 4.1, 300.0, model="other"),
    }
    (tmp_path / "results.json").write_text(json.dumps(rows))
    monkeypatch.setattr(sys, "argv", ["frontier.py", str(tmp_path)])
    frontier.main()
    made = {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.name != "results.json"}
    assert made.keys() == {"frontier.md", "frontier-m.png", "frontier-other.png"}
    assert made["frontier-m.png"].startswith(b"\x89PNG")
    assert made["frontier-m.png"] != made["frontier-other.png"]
    assert b"| 3.900 | 260.0 | 20.00 | 2.5 | 3.50 | **spqr** | 3 |" in made["frontier.md"]


def test_without_results_it_says_what_makes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["frontier.py", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"tools/paper/evaluate_methods\.py makes it"):
        frontier.main()
