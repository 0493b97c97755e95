"""What only the payload tells: histograms of codes, maps of outliers, the error against a reference."""

import os
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spqfmt.codecs.elements import Elements
from spqfmt.container.reader import Reader, located
from spqfmt.container.shards import open_readers
from spqfmt.errors import OptionError
from spqfmt.progress import Progress, Silent
from spqfmt.reading.distance import distance, to_numbers
from spqfmt.reading.reference import Reference, open_reference
from spqfmt.reading.report.records import FileReport, Histogram, Measured, OutlierMap
from spqfmt.reading.rows import read_tensor
from spqfmt.records import TensorRecord
from spqfmt.schemes.outliers import bands
from spqfmt.wire import DTYPES

MAP_ROWS, MAP_COLUMNS = 32, 96
"""Cells of an outlier map, at most."""


def measure_file(
    path: str | os.PathLike[str],
    report: FileReport,
    *,
    names: Collection[str] | None = None,
    reference: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> FileReport:
    """The report of `path` with `measured` filled for the tensors in `names` (default: all); tied ones have none.

    `reference` is an .spq file, a Hugging Face folder or a GGUF file. Tensors that it lacks, or has in another shape,
    have no error; OptionError when that is so for all of them. Raises FormatError for damage, ImporterError.
    """
    with ExitStack() as stack:
        readers = open_readers(path)
        for reader in readers:
            stack.callback(reader.close)
        holders = {record.name: reader for reader in readers for record in reader.index.tensors}
        chosen = [t for t in report.tensors if t.tied_to is None and (names is None or t.name in names)]
        other = None if reference is None else stack.enter_context(open_reference(Path(reference)))
        if other is not None and chosen and not any(other.shape(t.name) == t.shape for t in chosen):
            raise OptionError(f"{reference}: has none of these tensors of {path}, such as {chosen[0].name}")
        shown = stack.enter_context(progress or Silent())
        shown.start(sum(t.raw_bytes for t in chosen))
        measured = {}
        for tensor in chosen:
            reader = holders[tensor.name]
            measured[tensor.name] = _measure(reader, reader.index.by_name[tensor.name], other)
            shown.advance(tensor.raw_bytes, tensor.name)
    return replace(report, tensors=tuple(replace(t, measured=measured.get(t.name)) for t in report.tensors))


def _measure(reader: Reader, record: TensorRecord, reference: Reference | None) -> Measured:
    reader.check_elements(record)
    error = None
    if reference is not None and reference.shape(record.name) == record.shape:
        elements, dtype = reference.read(record.name)
        error = distance(read_tensor(reader, record), record.dtype, elements, dtype)
    return Measured(histogram(reader, record), outlier_map(reader, record), error)


def histogram(reader: Reader, record: TensorRecord) -> Histogram | None:
    """Of the codes, or of a dense tensor's exponents or small integers. None for wide integers and empty tensors."""
    stream = record.by_role.get("codes") or record.by_role["values"]
    is_float = stream.dtype in {"f64", "f32", "f16", "bf16", "f8_e4m3", "f8_e5m2"}
    if not stream.n or not (is_float or DTYPES[stream.dtype].bits <= 8):
        return None
    total, lowest, n_zeros = np.zeros(0, np.int64), 0, 0
    unit = "exponent" if is_float else "code" if stream.role == "codes" else "integer"
    for elements in _pieces(reader, record, stream.role):
        values = _exponents(elements, stream.dtype) if is_float else elements.astype(np.int64)
        n_zeros += int(np.count_nonzero(to_numbers(elements, stream.dtype) == 0)) if is_float else 0
        if values.size:
            total, lowest = _add(total, lowest, values)
    return Histogram(unit, lowest, tuple(total.tolist()), n_zeros)


def _pieces(reader: Reader, record: TensorRecord, role: str) -> Iterator[Elements]:
    """The elements of a stream, some chunks at a time."""
    run = 16
    chunks = record.by_role[role].chunks
    for at in range(0, len(chunks), run):
        last = chunks[at : at + run][-1]
        yield reader.read_elements(record, role, chunks[at].first, last.first + last.n_elements)


def _exponents(elements: Elements, dtype: str) -> NDArray[np.int64]:
    values = to_numbers(elements, dtype)
    values = values[np.isfinite(values) & (values != 0)]
    exponents: NDArray[np.int64] = np.frexp(values)[1].astype(np.int64) - 1
    return exponents


def _add(counts: NDArray[np.int64], lowest: int, values: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """Counts from `lowest` on, with these values added."""
    low, high = int(values.min()), int(values.max())
    if counts.size:
        low, high = min(low, lowest), max(high, lowest + counts.size - 1)
    out = np.bincount(values - low, minlength=high - low + 1)
    out[lowest - low : lowest - low + counts.size] += counts
    return out, low


def outlier_map(reader: Reader, record: TensorRecord) -> OutlierMap | None:
    """Where the outliers lie; None for a tensor without."""
    if "outlier_values" not in record.by_role:
        return None
    rows, columns = record.matrix_shape
    rows_per_cell, columns_per_cell = max(1, -(-rows // MAP_ROWS)), max(1, -(-columns // MAP_COLUMNS))
    counts = np.zeros((-(-rows // rows_per_cell), -(-columns // columns_per_cell)), np.int64)

    def fetch(role: str, first: int = 0, stop: int | None = None) -> Elements:
        return reader.read_elements(record, role, first, stop)

    with located(reader.path):
        for first_row, positions, _ in bands(record, fetch, 0, rows):
            at, column = np.divmod(positions, columns)
            cells = (at + first_row) // rows_per_cell * counts.shape[1] + column // columns_per_cell
            counts += np.bincount(cells, minlength=counts.size).reshape(counts.shape)
    return OutlierMap(rows, columns, rows_per_cell, columns_per_cell, tuple(map(tuple, counts.tolist())))
