"""The charts of a file as one PNG, for papers and READMEs: `spqfmt inspect --png`."""

import os
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from statistics import quantiles
from typing import IO, TYPE_CHECKING, Any

from spqfmt.pages.palette import LIGHT, N_STEPS
from spqfmt.pages.png_style import WIDTH_INCHES, save, style
from spqfmt.pages.squarify import Box, squarify
from spqfmt.pages.text import integer, percent, ratio, size
from spqfmt.reading.report import FileReport, GroupReport, TensorReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_ROWS = 12
_TREEMAP = (WIDTH_INCHES * 72, 2.6 * 72)
"""Width and height in points, so that areas have the shapes that they will be seen in."""


def write_png(report: FileReport, path: Path, out: str | os.PathLike[str] | IO[bytes]) -> None:
    """Draw the file at `path`: its bytes as areas, bits along the layers, what is stored against its bound.

    With a histogram of the largest tensor that was measured. Raises OptionError where matplotlib is missing.
    """
    with style():
        from matplotlib.figure import Figure

        lines = _layer_lines(report)
        measured = any(t.measured and t.measured.histogram for t in report.tensors)
        heights = [3.0, *([2.0] if lines else []), 2.4]
        figure = Figure(figsize=(WIDTH_INCHES, sum(heights)), layout="constrained")
        # Parts of their own: the areas reach the edges, whatever room the names of the others need.
        parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        _draw_treemap(parts[0].subplots(), report, path.name)
        if lines:
            _draw_layers(parts[1].subplots(), lines)
        if measured:
            left, right = parts[-1].subplots(1, 2)
            _draw_histogram(right, report)
        else:
            left = parts[-1].subplots()
        _draw_bounds(left, report)
        save(figure, out)


def _brief(name: str) -> str:
    return name.removesuffix(".weight")


def _draw_treemap(axes: "Axes", report: FileReport, name: str) -> None:
    from matplotlib.patches import Rectangle

    groups: dict[str, list[tuple[str, int, float | None]]] = {}
    for t in report.tensors:
        if t.stored_bytes:
            groups.setdefault(t.layer, []).append((t.projection, t.stored_bytes, t.bits_per_weight))
    for asset, n_bytes in report.assets.items():
        if n_bytes:
            groups.setdefault("files of the model", []).append((asset, n_bytes, None))
    rest = report.file_bytes - sum(b for members in groups.values() for _, b, _ in members)
    if rest:
        groups["index, checksums, padding"] = [("index, checksums, padding", rest, None)]
    step = _steps([t for t in report.tensors if t.stored_bytes > report.file_bytes / 2000])
    width, height = _TREEMAP
    outer = squarify([sum(b for _, b, _ in m) for m in groups.values()], Box(0, 0, width, height))
    for (group, members), box in zip(groups.items(), outer, strict=True):
        inner = squarify([b for _, b, _ in members], box)
        for (_, _, bits), tile in zip(members, inner, strict=True):
            colour = LIGHT["surface"] if bits is None else LIGHT[f"step-{step(bits)}"]
            edge = LIGHT["background"]
            axes.add_patch(Rectangle((tile.x, tile.y), tile.width, tile.height, fc=colour, ec=edge, lw=0.3))
        axes.add_patch(
            Rectangle((box.x, box.y), box.width, box.height, fill=False, ec=LIGHT["background"], lw=1.6)
        )
        short = ".".join(_brief(group).split(".")[-2 if group[-1:].isdigit() else -1 :])
        if box.height > 12 and box.width > 4.2 * len(short) + 6:
            axes.text(box.x + 4, box.y + 4, short, fontsize=6.5, va="top", bbox=_LABEL)
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set_title(
        f"{name}: {size(report.file_bytes)}, {report.totals.bits_per_weight:.2f} bits a weight, "
        f"{ratio(report.totals.bf16_bytes / report.file_bytes)} times smaller than BF16"
    )
    axes.set_xlabel("areas are bytes; the darker, the more bits a weight", loc="left")


_LABEL: Any = {"facecolor": LIGHT["background"], "alpha": 0.8, "pad": 1, "linewidth": 0}


def _steps(tensors: Sequence[TensorReport]) -> Any:
    """Bits a weight -> one of the shades, each for as many tensors."""
    bits = [t.bits_per_weight for t in tensors if t.n_weights]
    borders = quantiles(bits, n=N_STEPS) if len(bits) > 1 else []
    return lambda value: bisect_right(borders, value) if borders else 0


_Line = list[tuple[int, TensorReport | GroupReport]]


def _layer_lines(report: FileReport) -> dict[str, _Line]:
    """Bits of all of a layer, under "", and of each projection that is half a percent of the file or more."""
    layers = [g for g in report.groups["layer"] if g.name.rpartition(".")[2].isdigit() and g.n_weights]
    if len(layers) < 2:
        return {}
    number = {group.name: i for i, group in enumerate(layers)}
    lines: dict[str, _Line] = {"": list(enumerate(layers))}
    for tensor in report.tensors:
        if tensor.layer in number and tensor.n_weights:
            lines.setdefault(tensor.projection, []).append((number[tensor.layer], tensor))
    enough = report.file_bytes / 200
    return {name: line for name, line in lines.items() if sum(t.stored_bytes for _, t in line) >= enough}


def _draw_layers(axes: "Axes", lines: dict[str, _Line]) -> None:
    from matplotlib.ticker import MaxNLocator

    together = lines.pop("")
    for number, line in enumerate(lines.values()):
        axes.plot(
            [at for at, _ in line],
            [t.bits_per_weight for _, t in line],
            color=LIGHT["faint"],
            lw=0.8,
            label=None if number else "one projection",
        )
    at = [at for at, _ in together]
    axes.plot(
        at,
        [t.bits_per_weight for _, t in together],
        "o-",
        color=LIGHT["accent"],
        ms=2.5,
        label="all of a layer",
    )
    if all(t.entropy_bits_per_weight is not None for _, t in together):
        bound = [t.entropy_bits_per_weight or 0.0 for _, t in together]
        axes.plot(at, bound, ":", color=LIGHT["muted"], lw=1.1, label="its entropy bound")
    axes.margins(x=0.01)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title("Bits a weight along the layers")
    axes.legend(ncols=3, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2)


def _draw_bounds(axes: "Axes", report: FileReport) -> None:
    groups = sorted((g for g in report.groups["projection"] if g.n_weights), key=lambda g: -g.stored_bytes)
    groups = groups[:_MOST_ROWS]
    for row, group in enumerate(groups):
        bound = group.entropy_bits_per_weight
        if bound is not None:
            axes.plot([bound, group.bits_per_weight], [row, row], color=LIGHT["accent"])
            axes.plot(bound, row, "o", mfc=LIGHT["background"], mec=LIGHT["muted"], ms=5.5)
        axes.plot(group.bits_per_weight, row, "o", color=LIGHT["accent"], ms=3.2)
    axes.set_yticks(range(len(groups)), [_brief(group.name) for group in groups])
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.grid(visible=True, axis="x")
    axes.grid(visible=False, axis="y")
    axes.set_title("Stored (dot), entropy bound (circle)")


def _draw_histogram(axes: "Axes", report: FileReport) -> None:
    found = [t for t in report.tensors if t.measured and t.measured.histogram]
    tensor = max(found, key=lambda t: (t.outliers > 0, t.stored_bytes))
    assert tensor.measured
    assert tensor.measured.histogram
    h = tensor.measured.histogram
    values = range(h.first, h.first + len(h.counts))
    axes.bar(values, h.counts, width=1.0 if len(h.counts) > 40 else 0.85, color=LIGHT["accent"])
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.01)
    outliers = f", {percent(tensor.outlier_share)} outliers" if tensor.outliers else ""
    axes.set_xlabel(f"{integer(sum(h.counts))} {h.unit}s{outliers}")
    axes.set_title(_brief(tensor.name))
