"""Size against loss, of the files that tools/paper/evaluate_methods.py has measured: a table and a plot for each model.

    python tools/paper/frontier.py OUT_DIR [--most-kl MILLINATS]

Reads OUT_DIR/results.json; writes OUT_DIR/frontier.md and OUT_DIR/frontier-MODEL.png (needs matplotlib: the extra
`plots`). A point is a file: bits are what the quantized tensors take in it, KL (millinats a token) and perplexity
those of the model loaded from it. A point is on the frontier when no other has both fewer bits and less KL. Rows that
prune or quantize activations too stand beside those that do not: the settings say so.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from method_results import Entry, Results, by_model, in_order, show

from spqfmt.pages.palette import SERIES
from spqfmt.pages.png_style import new_figure, save, style

_MARKERS = "osD^v<>Ph*pX"
_METHODS = ("rtn", "gptq", "spqr", "dc", "jsq", "ecq")
_MEASURES = (("kl", "KL to the reference (millinats a token)"), ("perplexity", "perplexity"))
_MOST_KL = 2000.0


def points(entries: Sequence[Entry]) -> list[Entry]:
    """Those with a size and a loss, by rising bits."""
    sized = [e for e in entries if e["stored"] is not None and e["kl"] is not None]
    return sorted(sized, key=lambda e: (e["stored"], e["kl"]))


def frontier(entries: Sequence[Entry]) -> list[Entry]:
    """The points that no other beats in bits and KL both, by rising bits."""
    best, found = float("inf"), []
    for entry in points(entries):
        if entry["kl"] < best:
            best = entry["kl"]
            found.append(entry)
    return found


def table(model: str, entries: Sequence[Entry]) -> str:
    """Markdown; points on the frontier are set in bold."""
    kept = {id(entry) for entry in frontier(entries)}
    reference = next((e["perplexity"] for e in entries if e["method"] == "lossless"), None)
    lines = [
        f"### {model}" + (f": perplexity {reference:.2f} before" if reference is not None else ""),
        "",
        "| stored bits | KL | perplexity | file MB | BF16 / file | method | settings |",
        "|---|---|---|---|---|---|---|",
    ]
    for e in points(entries):
        name = f"**{e['method']}**" if id(e) in kept else e["method"]
        cells = [
            show(e["stored"], ".3f"),
            show(e["kl"], ".1f"),
            show(e["perplexity"]),
            show(e["file_bytes"] / 1e6, ".1f"),
            show(e["ratio"]),
        ]
        lines.append(f"| {' | '.join(cells)} | {name} | {e['settings']} |")
    return "\n".join(lines) + "\n"


def plot(model: str, entries: Sequence[Entry], file: Path, most_kl: float) -> None:
    """KL and perplexity over stored bits; points of a series are joined, those beyond `most_kl` left out."""
    shown = [e for e in points(entries) if 0 < e["kl"] <= most_kl]
    colours = {_label(e): _colour(e["method"]) for e in in_order(shown)}
    labels = list(colours)
    with style():
        from matplotlib.ticker import LogLocator, NullFormatter

        figure, axes = new_figure(4.2, columns=2)
        for label in labels:
            # Joined in the order of ROWS: more bits for the codes may be fewer in the file.
            mine = in_order(e for e in shown if _label(e) == label)
            for axis, (measure, _) in zip(axes, _MEASURES, strict=True):
                axis.plot(
                    [e["stored"] for e in mine],
                    [e[measure] for e in mine],
                    linestyle="-" if mine[0]["series"] else "",
                    color=colours[label],
                    marker=_marker(label, colours),
                    label=label,
                )
        for axis, (_, title) in zip(axes, _MEASURES, strict=True):
            axis.set(xlabel="stored bits a weight", ylabel=title, yscale="log", title=model)
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter(NullFormatter())
        figure.legend(handles=axes[0].lines, loc="outside lower center", ncols=4)
        save(figure, file)


def _label(entry: Entry) -> str:
    return str(entry["series"] or f"{entry['method']}, single points")


def _marker(label: str, colours: Mapping[str, str]) -> str:
    """No two labels of a colour have the same, as long as there are enough."""
    alike = [other for other, colour in colours.items() if colour == colours[label]]
    return _MARKERS[alike.index(label) % len(_MARKERS)]


def _colour(method: str) -> str:
    """The methods that this package is about have a hue each, baselines share the last one."""
    return SERIES[_METHODS.index(method)] if method in _METHODS else SERIES[-1]


def main() -> None:
    """Run the tool, whose help is the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--most-kl", type=float, default=_MOST_KL, help="points beyond are not plotted")
    arguments = parser.parse_args()
    models = by_model(Results(arguments.out / "results.json").read())
    if not models:
        raise SystemExit(
            f"{arguments.out}: no results.json with rows; tools/paper/evaluate_methods.py makes it"
        )
    text = "\n".join(table(model, entries) for model, entries in models.items())
    (arguments.out / "frontier.md").write_text(text, "utf-8")
    for model, entries in models.items():
        plot(model, entries, arguments.out / f"frontier-{model}.png", arguments.most_kl)
    print(text)


if __name__ == "__main__":
    main()
