"""The race's table: a row for each entrant and number of cores, medians with the slowest and the fastest round."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools" / "bench"))

import pytest
from race import Entry, Runner, entries, table


def test_a_row_has_medians_and_spread() -> None:
    rates = {"prompt": [90.0, 100.0, 140.0], "tokens": [9.0, 12.0, 10.5]}
    ran = [Entry("one", "spqfmt", "m.spq", n, load_s=0.25, memory_bytes=3 << 20, rates=rates) for n in (1, 2)]
    rows = table(ran, {"prompt": 512, "tokens": 64}, 3).splitlines()[2:4]
    assert rows == [f"| {n} | one | 100 (90 to 140) | 10.5 (9.0 to 12.0) | 0.2 | 3 |" for n in (1, 2)]


def test_an_entrant_that_cannot_start_says_so() -> None:
    with pytest.raises(RuntimeError, match="nobody has ended"):
        Runner(Entry("nobody", "nobody", "none", 1), sys.executable)


def test_those_take_part_that_are_asked_for(tmp_path: Path) -> None:
    gguf = tmp_path / "m.gguf"
    found = entries(gguf, gguf, tmp_path, [1, 2], kinds=["llama.cpp"])
    assert [(entry.name, entry.cores) for entry in found] == [
        ("llama.cpp, m.gguf", 1),
        ("llama.cpp, m.gguf", 2),
    ]
    assert not list(tmp_path.iterdir())
