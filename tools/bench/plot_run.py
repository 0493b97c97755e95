"""Tokens a second over memory, from `spqfmt bench FILE --only run --json`.

    spqfmt bench model.spq --only run --json > run.json
    python tools/bench/plot_run.py run.json OUT.png

One panel for each workload (needs matplotlib: the extra `plots`). A point is a configuration: across, what is held of
weights; up, tokens a second, median and spread. Configurations of one kind, files and ceilings, have one colour. Grey
ticks are what the latency model expects, serial below and overlapped above.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from spqfmt.pages.palette import LIGHT, SERIES
from spqfmt.pages.png_style import new_figure, save, style

Row = Mapping[str, Any]
KINDS = ("BF16 transformers", "decoded", "under a ceiling", "partial", "compressed", "disk")


def kind(configuration: str) -> str:
    """Which of KINDS a configuration belongs to."""
    if configuration.endswith("of decoded"):
        return "under a ceiling"
    return "partial" if configuration.startswith("every:") else configuration


def plot(rows: Sequence[Row], file: Path) -> None:
    """Draw all rows of one file. Raises OptionError without matplotlib."""
    panels = [(name, list(own)) for name, own in groupby(rows, lambda row: row["workload"])]
    with style():
        figure, axes = new_figure(height=2.8, columns=len(panels))
        for axis, (workload, own) in zip(axes, panels, strict=True):
            for row in own:
                _point(axis, row)
            axis.set(title=workload, xlabel="weights held (MB)", xlim=(0, None), ylim=(0, None))
        axes[0].set(ylabel="tokens a second")
        handles = {
            line.get_label(): line for axis in axes for line in axis.lines if line.get_label() in KINDS
        }
        figure.legend(
            handles=[handles[k] for k in KINDS if k in handles], loc="outside lower center", ncols=6
        )
        save(figure, file)


def _point(axis: Any, row: Row) -> None:
    x, y = row["weights_bytes"] / 1e6, row["tokens_s"]
    low, high = row["tokens_s_range"]
    color = SERIES[KINDS.index(kind(row["configuration"])) % len(SERIES)]
    axis.plot([x, x], [low, high], color=color, linewidth=0.8)
    axis.plot([x], [y], marker="o", linestyle="", color=color, label=kind(row["configuration"]))
    if row["expected"] is not None:
        expected = [row["expected"][name] for name in ("serial_tokens_s", "overlapped_tokens_s")]
        axis.plot([x, x], expected, marker="_", linestyle="", color=LIGHT["muted"], markersize=7)


def main() -> None:
    """Run the tool, whose help is the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    rows = json.loads(arguments.results.read_text("utf-8"))["run"]
    if not rows:
        raise SystemExit(
            f"{arguments.results}: no run rows; `spqfmt bench FILE --only run --json` makes them"
        )
    plot(rows, arguments.out)


if __name__ == "__main__":
    main()
