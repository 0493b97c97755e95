"""The page of `spqfmt inspect --html`."""

import json
from dataclasses import fields
from pathlib import Path

from spqfmt.container.model import open_model
from spqfmt.pages.compact import compact
from spqfmt.pages.render import render
from spqfmt.pages.residency import residency_data
from spqfmt.pages.text import ratio
from spqfmt.reading.report import CostParts, FileReport
from spqfmt.residency.from_index import inventory_from_index
from spqfmt.residency.rates import Rates, measure_rates

_SCRIPTS = (
    "text.js", "chart.js", "treemap.js", "layers.js", "bound.js",
    "tensor.js", "planner.js", "residency.js", "table.js", "inspect.js",
)  # fmt: skip

_PART_LABELS = {
    "values": "values of plain tensors",
    "codes": "codes",
    "scales": "scales and zero points",
    "outliers": "outliers",
    "orders": "orders of channels",
    "tables": "coders' tables",
    "assets": "files of the model",
    "index": "index",
    "checksums": "checksums",
    "frame": "header and trailer",
    "padding": "padding",
}
_FACTS = {
    "method": "Method",
    "method_options": "Options",
    "architecture": "Architecture",
    "source": "Source",
    "writer": "Written by",
}


def inspect_page(report: FileReport, path: Path, rates: Rates | None = None) -> str:
    """The page of the file at `path`; histograms and maps of the tensors that are measured in `report`.

    `rates` of the residency plan are measured where they are not given. Raises FormatError.
    """
    data = compact(report, path.name)
    residency = _residency(path, rates)
    n_measured = len(data["measured"])  # type: ignore[arg-type]
    return render(
        "inspect.html",
        _SCRIPTS,
        data | {"residency": residency},
        name=path.name,
        report=report,
        totals=report.totals,
        to_source=ratio(report.totals.ratio),
        to_bf16=ratio(report.totals.bf16_bytes / report.file_bytes),
        over=_over(report),
        parts=_parts(report),
        facts=_facts(report),
        measured_note=_measured_note(report, n_measured),
        measure_command="" if n_measured else f"spqfmt inspect {path.name} --measure --html page.html",
        residency=residency is not None,
        residency_note="What the model computes is read from names and shapes; spqfmt plan asks its class.",
    )


def _residency(path: Path, rates: Rates | None) -> dict[str, object] | None:
    with open_model(path) as model:
        inventory = inventory_from_index(model.readers)
        if not inventory.items:
            return None
        return residency_data(inventory, rates or measure_rates(model.readers[0]))


def _over(report: FileReport) -> float | None:
    """Stored bits of the tensors over their bound, in percent."""
    bound = report.totals.entropy_bits_per_weight
    if not bound:
        return None
    return 100 * (8 * report.totals.tensor_bytes / report.totals.n_weights / bound - 1)


def _parts(report: FileReport) -> list[dict[str, object]]:
    sizes = {field.name: getattr(report.totals.parts, field.name) for field in fields(CostParts)}
    largest = max(sizes.values(), default=1) or 1
    return [
        {
            "key": f"parts.{key}",
            "label": _PART_LABELS[key],
            "bytes": n_bytes,
            "share": n_bytes / report.file_bytes,
            "width": 100 * n_bytes / largest,
        }
        for key, n_bytes in sorted(sizes.items(), key=lambda pair: -pair[1])
        if n_bytes
    ]


def _facts(report: FileReport) -> list[tuple[str, str]]:
    facts = [(label, report.metadata[key]) for key, label in _FACTS.items() if report.metadata.get(key)]
    plain = [(label, _plain(value) if label == "Options" else value) for label, value in facts]
    return [(label, value) for label, value in plain if value]


def _plain(options: str) -> str:
    """JSON options as people write them; as they are where they are no object."""
    try:
        found = json.loads(options)
    except (ValueError, RecursionError):
        return options
    return ", ".join(f"{key} {value}" for key, value in found.items()) if isinstance(found, dict) else options


def _measured_note(report: FileReport, n_measured: int) -> str:
    n = report.totals.n_tensors
    if not n_measured:
        return "Histograms of codes and maps of outliers need the payload, which was not decoded."
    if n_measured < sum(t.tied_to is None for t in report.tensors):
        return f"Histograms and maps are of the {n_measured} largest of {n} tensors that were measured."
    return f"Histograms and maps are of all {n_measured} tensors that hold values."
