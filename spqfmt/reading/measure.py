"""What only the payload tells: histograms of codes, maps of outliers, the error against a reference."""

import os
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from spqfmt.codecs.elements import CARRIERS, Elements
from spqfmt.container.fetch import StreamFetch
from spqfmt.container.located import located
from spqfmt.container.model import open_model
from spqfmt.container.reader import Reader
from spqfmt.errors import OptionError
from spqfmt.kernels import native
from spqfmt.progress import Progress, Silent
from spqfmt.reading.distance import to_numbers
from spqfmt.reading.reference import Reference, open_reference
from spqfmt.reading.report.file import FileReport
from spqfmt.reading.report.records import Histogram, Measured, OutlierMap
from spqfmt.records import FLOATS, TensorRecord
from spqfmt.schemes.outliers import bands
from spqfmt.schemes.trellis import unfolded
from spqfmt.stand_ins import given_place
from spqfmt.wire import DTYPES, SMALL_FLOATS

_AT_ONCE = 1 << 19
_EXPONENTS = 2048
"""More than a float has of either sign."""

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
        model = stack.enter_context(open_model(path))
        chosen = [t for t in report.tensors if t.tied_to is None and (names is None or t.name in names)]
        other = None if reference is None else stack.enter_context(open_reference(given_place(reference)))
        if other is not None and chosen and not any(other.shape(t.name) == t.shape for t in chosen):
            raise OptionError(f"{reference}: has none of these tensors of {path}, such as {chosen[0].name}")
        shown = stack.enter_context(progress or Silent())
        shown.start(sum(t.raw_bytes for t in chosen))
        measured = {}
        for tensor in chosen:
            measured[tensor.name] = _measure(*model.held(tensor.name), other)
            shown.advance(tensor.raw_bytes, tensor.name)
    return replace(report, tensors=tuple(replace(t, measured=measured.get(t.name)) for t in report.tensors))


def _measure(reader: Reader, record: TensorRecord, reference: Reference | None) -> Measured:
    reader.check_elements(record)
    error = None
    if reference is not None and not record.is_named and reference.shape(record.name) == record.shape:
        error = reference.beside(record.name, reader, record)
    return Measured(histogram(reader, record), outlier_map(reader, record), error)


def histogram(reader: Reader, record: TensorRecord) -> Histogram | None:
    """Count the codes, or a dense tensor's exponents or small integers.

    None for wide integers, empty tensors, and schemes that are not known.
    """
    if record.is_named:
        for own in record.streams:
            for _ in StreamFetch(reader, record).runs(own.role):
                pass  # damage is told of whatever the scheme
        return None
    stream = record.by_role.get("codes") or record.by_role["values"]
    is_float = stream.dtype in FLOATS or stream.dtype in SMALL_FLOATS
    if not stream.n or not (is_float or DTYPES[stream.dtype].bits <= 8):
        return None
    counted = _CountedFloats(stream.dtype) if is_float else _CountedIntegers(stream.dtype)
    for elements, times in unfolded(record, StreamFetch(reader, record)).runs(stream.role):
        for at in range(0, elements.size, _AT_ONCE):
            counted.add(elements[at : at + _AT_ONCE], times)
    unit = "exponent" if is_float else "code" if stream.role == "codes" else "integer"
    numbers, counts, n_zeros = counted.found()
    first, stop = (int(numbers.min()), int(numbers.max()) + 1) if numbers.size else (0, 0)
    total = np.zeros(stop - first, np.int64)
    np.add.at(total, numbers - first, counts)
    return Histogram(unit, first, tuple(total.tolist()), n_zeros)


class _CountedIntegers:
    """Counts small integers by their value."""

    def __init__(self, dtype: str) -> None:
        self._counts = np.zeros(256, np.int64)
        self._values = np.arange(256, dtype=np.uint8).view(CARRIERS[dtype]).astype(np.int64)

    def add(self, elements: Elements, times: int) -> None:
        self._counts += times * native.histogram(np.ascontiguousarray(elements)).astype(np.int64)

    def found(self) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
        """Values, the number of each, and 0."""
        there = np.flatnonzero(self._counts)
        return self._values[there], self._counts[there], 0


class _CountedFloats:
    """Floats other than 0 by floor(log2 |x|), where they are finite, and zeros."""

    def __init__(self, dtype: str) -> None:
        self._dtype = dtype
        self._counts = np.zeros(2 * _EXPONENTS, np.int64)
        self._n_zeros = 0

    def add(self, elements: Elements, times: int) -> None:
        values = to_numbers(elements, self._dtype)
        self._n_zeros += times * int(np.count_nonzero(values == 0))
        exponents = np.frexp(values[np.isfinite(values) & (values != 0)])[1] + (_EXPONENTS - 1)
        self._counts += times * np.bincount(exponents, minlength=2 * _EXPONENTS)

    def found(self) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
        """Exponents, the number of each, and that of zeros."""
        there = np.flatnonzero(self._counts)
        return there - _EXPONENTS, self._counts[there], self._n_zeros


def outlier_map(reader: Reader, record: TensorRecord) -> OutlierMap | None:
    """Where the outliers lie; None for a tensor without."""
    if record.is_named or "outlier_values" not in record.by_role:
        return None
    rows, columns = record.matrix_shape
    rows_per_cell, columns_per_cell = max(1, -(-rows // MAP_ROWS)), max(1, -(-columns // MAP_COLUMNS))
    counts = np.zeros((-(-rows // rows_per_cell), -(-columns // columns_per_cell)), np.int64)

    with located(reader.path):
        for first_row, positions, _ in bands(record, StreamFetch(reader, record), 0, rows):
            at, column = np.divmod(positions, columns)
            cells = (at + first_row) // rows_per_cell * counts.shape[1] + column // columns_per_cell
            counts += np.bincount(cells, minlength=counts.size).reshape(counts.shape)
    return OutlierMap(
        rows=rows,
        columns=columns,
        rows_per_cell=rows_per_cell,
        columns_per_cell=columns_per_cell,
        counts=tuple(map(tuple, counts.tolist())),
    )
