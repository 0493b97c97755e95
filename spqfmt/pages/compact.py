"""A report as columns of numbers for a page's script (static/inspect.js unpacks them)."""

import base64
from collections.abc import Iterable
from dataclasses import asdict
from typing import Generic, TypeVar

from spqfmt.reading.report import FileReport, GroupReport, Measured, TensorReport

_T = TypeVar("_T")

MEASURED_CHARACTERS = 200_000
"""Histograms and maps that a page takes, largest tensors first: it should open on a phone."""


def compact(report: FileReport, name: str) -> dict[str, object]:
    """The page's data but for the residency plan. Bytes and counts are those of the report, to the last one."""
    layers, projections, words = Numbered[str](), Numbered[str](), Numbered[str]()
    tensors = report.tensors
    groups = report.groups
    for of_report, numbers in ((groups["layer"], layers), (groups["projection"], projections)):
        for group in of_report:
            numbers.of(group.name)
    streams = [
        [
            [words.of(s.role), words.of(s.dtype), words.of(s.codec), s.raw_bytes, s.stored_bytes]
            for s in tensor.streams
        ]
        for tensor in tensors
    ]
    return {
        "name": name,
        "file_bytes": report.file_bytes,
        "assets": report.assets,
        "layers": _groups(groups["layer"]),
        "projections": _groups(groups["projection"]),
        "tensors": {
            "name": [t.name for t in tensors],
            "layer": [layers.of(t.layer) for t in tensors],
            "projection": [projections.of(t.projection) for t in tensors],
            "shape": [t.shape for t in tensors],
            "dtype": [words.of(t.dtype) for t in tensors],
            "scheme": [words.of(t.scheme) for t in tensors],
            "method": [words.of(t.method) for t in tensors],
            "tied_to": [t.tied_to for t in tensors],
            "n_weights": [t.n_weights for t in tensors],
            "raw_bytes": [t.raw_bytes for t in tensors],
            "stored_bytes": [t.stored_bytes for t in tensors],
            "entropy_bits_per_weight": [_short(t.entropy_bits_per_weight) for t in tensors],
            "outliers": [t.outliers for t in tensors],
            "streams": streams,
        },
        "words": words.all,
        "measured": _measured(tensors),
    }


class Numbered(Generic[_T]):
    """Values by number, in the order in which they first came."""

    def __init__(self) -> None:
        self._numbers: dict[_T, int] = {}

    def of(self, value: _T) -> int:
        """The number of a value, a new one the first time."""
        return self._numbers.setdefault(value, len(self._numbers))

    @property
    def all(self) -> list[_T]:
        """Return the values in the order of their numbers."""
        return list(self._numbers)


def _short(bits: float | None) -> float | None:
    return None if bits is None else round(bits, 6)


def _groups(groups: Iterable[GroupReport]) -> dict[str, list[object]]:
    groups = list(groups)
    return {
        "names": [g.name for g in groups],
        "n_weights": [g.n_weights for g in groups],
        "stored_bytes": [g.stored_bytes for g in groups],
        "bits_per_weight": [_short(g.bits_per_weight) for g in groups],
        "entropy_bits_per_weight": [_short(g.entropy_bits_per_weight) for g in groups],
    }


def _measured(tensors: tuple[TensorReport, ...]) -> dict[str, object]:
    """The measured figures by the tensor's number, as JSON keys are: as many as fit."""
    found: dict[str, object] = {}
    left = MEASURED_CHARACTERS
    for number, tensor in sorted(enumerate(tensors), key=lambda pair: -pair[1].stored_bytes):
        if tensor.measured is None:
            continue
        packed, n_characters = _pack(tensor.measured)
        left -= n_characters
        if left < 0:
            break
        found[str(number)] = packed
    return found


def _pack(measured: Measured) -> tuple[dict[str, object], int]:
    """The measurement, and about how many characters it takes."""
    packed: dict[str, object] = {}
    n_characters = 0
    if measured.error is not None:
        packed["error"] = asdict(measured.error)
        n_characters += 100
    if (h := measured.histogram) is not None:
        text = pack_counts(h.counts)
        packed["histogram"] = {"unit": h.unit, "first": h.first, "counts": text, "n_zeros": h.n_zeros}
        n_characters += len(text) + 60
    if (m := measured.outlier_map) is not None:
        text = pack_counts(count for row in m.counts for count in row)
        packed["outlier_map"] = {
            "rows": m.rows,
            "columns": m.columns,
            "rows_per_cell": m.rows_per_cell,
            "columns_per_cell": m.columns_per_cell,
            "width": len(m.counts[0]) if m.counts else 0,
            "counts": text,
        }
        n_characters += len(text) + 100
    return packed, n_characters


def pack_counts(counts: Iterable[int]) -> str:
    """Base64 of numbers in 7 bits a byte, low ones first, the high bit where more follow."""
    out = bytearray()
    for count in counts:
        value = count
        while value > 127:
            out.append(value & 127 | 128)
            value >>= 7
        out.append(value)
    return base64.b64encode(out).decode()
