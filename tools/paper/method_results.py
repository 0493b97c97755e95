"""What tools/paper/evaluate_methods.py has measured: a JSON file by (model, row, settings), and its table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from method_rows import ROWS, Row

Entry = Mapping[str, Any]
"""One measured row: `model`, `method`, `settings`, `series`, what it cost (`sizes` and `pack` of evaluate_methods), and
what it lost (`perplexity`, `kl` in millinats a token, `tokens` scored). A number that there is not is None."""

CLAIMS = Path(__file__).parent / "claims.md"


class Results:
    """The measured rows in OUT/results.json. Read anew before each change: two people may measure in turn."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def read(self) -> dict[str, Entry]:
        """All rows by key; none when nothing was measured yet."""
        if not self._file.exists():
            return {}
        entries: dict[str, Entry] = json.loads(self._file.read_text("utf-8"))
        return entries

    def add(self, key: str, entry: Entry) -> dict[str, Entry]:
        """Keep a row, in place of what the key had; returns all."""
        entries = self.read() | {key: entry}
        unfinished = self._file.with_suffix(".part")
        unfinished.write_text(json.dumps(entries, indent=1), "utf-8")
        unfinished.replace(self._file)
        return entries


def key_of(model: str, row: Row, measured: Mapping[str, object]) -> str:
    """What a row is found again by: model, title, and everything that its figures depend on."""
    return f"{model} | {row.title} | {json.dumps(dict(measured), sort_keys=True)}"


def figures_of_no_file(
    raw_bytes: int, kept_bytes: int, n_weights: int, n_bits: float, seconds: float
) -> dict[str, float | None]:
    """What a row of a form that is not packed has: sizes as they are counted, beside what is kept as it was."""
    file_bytes = kept_bytes + n_bits / 8
    counted = {
        "file_bytes": file_bytes,
        "ratio": raw_bytes / file_bytes,
        "stored": n_bits / n_weights,
        "seconds": seconds,
    }
    return {**counted, **dict.fromkeys(("raw", "cr", "outliers", "paper", "peak_mb"))}


def in_order(entries: Iterable[Entry]) -> list[Entry]:
    """Sort as ROWS does; rows that are not there any more come last."""
    order = {(row.method, row.settings): number for number, row in enumerate(ROWS)}
    return sorted(entries, key=lambda e: order.get((e["method"], e["settings"]), len(order)))


def by_model(entries: Mapping[str, Entry]) -> dict[str, list[Entry]]:
    """The entries of each model, in order."""
    models = dict.fromkeys(str(entry["model"]) for entry in entries.values())
    return {model: in_order(e for e in entries.values() if e["model"] == model) for model in models}


def show(value: float | None, form: str = ".2f") -> str:
    """A cell; empty without a value."""
    return "" if value is None else format(value, form)


_COLUMNS = (
    ("raw bits", "raw", ".2f"),
    ("paper's bits", "paper", ".2f"),
    ("stored bits", "stored", ".2f"),
    ("outliers", "outliers", ".2%"),
    ("CR", "cr", ".2f"),
    ("ratio to BF16", "ratio", ".2f"),
    ("perplexity", "perplexity", ".2f"),
    ("KL", "kl", ".1f"),
    ("pack s", "seconds", ".0f"),
    ("peak MB", "peak_mb", ".0f"),
)


def table(entries: Mapping[str, Entry]) -> str:
    """Markdown: one table for each model, rows as in ROWS, and the papers' claims."""
    parts = []
    for model, mine in by_model(entries).items():
        titles = ["method", "settings", "calibrated on", *(title for title, _, _ in _COLUMNS)]
        lines = [titles, ["---"] * len(titles)]
        for e in mine:
            cells = [show(e[key], form) for _, key, form in _COLUMNS]
            lines.append([e["method"], e["settings"], e["calibration"], *cells])
        rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        parts.append(f"### {model} ({mine[0]['tokens']} tokens scored)\n\n{rows}\n")
    return "\n".join([*parts, CLAIMS.read_text("utf-8")])
