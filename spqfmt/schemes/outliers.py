"""Outliers: weights that replace the dequantized ones, positions as gaps (FORMAT.md 5.4)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from spqfmt import wire
from spqfmt.codecs.elements import Elements
from spqfmt.errors import CorruptError
from spqfmt.kernels.json_text import Wanted
from spqfmt.records import TensorRecord
from spqfmt.schemes.base import Float32, Roles, StreamData, Streamed, check_int
from spqfmt.schemes.floats import narrow, widen

ROLES = ("outlier_gaps", "outlier_values")
PARAMETERS: Mapping[str, Wanted] = {"outliers": {"rows_per_band": "scalar"}}
DTYPES = ("f32", "f16", "bf16")
ESCAPE = wire.OUTLIER_GAP_ESCAPE
_GAPS_AT_ONCE = 1 << 19
BAND_WEIGHTS = 1 << 22
"""A band is what must be decoded to read one row: about this many weights, thousands of outliers."""


@dataclass(frozen=True)
class Outliers:
    """Places in the stored matrix, ascending by (row, column), and their values as the carrier of `dtype`."""

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    values: Elements
    dtype: str

    def replace(self, matrix: Float32) -> None:
        """Put the outliers into the dequantized matrix, in place."""
        matrix[self.rows, self.columns] = widen(self.values, self.dtype)

    def encode(self, shape: tuple[int, int]) -> tuple[dict[str, int], tuple[StreamData, ...]]:
        """The `outliers` parameter and the two streams for a matrix of this shape."""
        n_rows, n_columns = shape
        per_band = max(1, min(n_rows, BAND_WEIGHTS // n_columns))
        borders = np.searchsorted(self.rows, np.arange(0, n_rows + per_band, per_band))
        gaps, sizes = [], []
        for band, (first, stop) in enumerate(pairwise(borders.tolist())):
            rows = self.rows[first:stop] - band * per_band
            gaps.append(_to_gaps(rows * n_columns + self.columns[first:stop]))
            sizes.append(int(stop - first))
        all_gaps = np.concatenate(gaps) if gaps else np.empty(0, np.uint8)
        return {"rows_per_band": per_band}, (
            StreamData("outlier_gaps", "u8", all_gaps, sizes=tuple(gap.size for gap in gaps)),
            StreamData("outlier_values", self.dtype, self.values, sizes=tuple(sizes)),
        )


def _to_gaps(positions: NDArray[np.int64]) -> NDArray[np.uint8]:
    steps = np.diff(positions, prepend=-1) - 1
    escapes = steps // ESCAPE
    gaps = np.full(int(escapes.sum()) + steps.size, ESCAPE, np.uint8)
    gaps[np.cumsum(escapes + 1) - 1] = steps % ESCAPE
    return gaps


def check(record: TensorRecord, roles: Roles) -> bool:
    """Whether the tensor has outliers, with their parameters and chunks checked."""
    parameter = record.parameters.get("outliers")
    gaps = roles.optional("outlier_gaps", ("u8",))
    values = roles.optional("outlier_values", DTYPES)
    if parameter is None and gaps is None and values is None:
        return False
    if not isinstance(parameter, dict) or gaps is None or values is None:
        raise CorruptError(f"tensor {record.name!r}: outliers need two streams and a parameter")
    per_band = check_int(parameter.get("rows_per_band"), "rows_per_band", 1)
    n_bands = -(-record.matrix_shape[0] // per_band)
    if n_bands > wire.MAX_OUTLIER_BANDS:
        raise CorruptError(f"tensor {record.name!r}: more than {wire.MAX_OUTLIER_BANDS} bands")
    for stream in (gaps, values):
        if stream.same_as is not None or len(stream.chunks) != n_bands:
            raise CorruptError(f"tensor {record.name!r}: {stream.role} must have {n_bands} chunks of its own")
    return True


def verify(record: TensorRecord, fetch: Streamed) -> None:
    """Every outlier has its place and its value."""
    if not isinstance(record.parameters.get("outliers"), dict):
        return
    for band in _held_bands(record, 0, record.matrix_shape[0]):
        counts, last = np.zeros(256, np.int64), 0
        for gaps, times in fetch.runs("outlier_gaps", *_span(record, "outlier_gaps", band)):
            counts += times * np.bincount(gaps, minlength=256)
            last = int(gaps[-1])
        steps = np.arange(256) + (np.arange(256) != ESCAPE)
        first, stop = _span(record, "outlier_values", band)
        _check_band(
            record,
            band,
            last,
            reached=int(counts @ steps) - 1,
            n=int(counts.sum() - counts[ESCAPE]),
            n_values=stop - first,
        )


def _check_band(record: TensorRecord, band: int, last: int, reached: int, n: int, n_values: int) -> None:
    """The rules for the gaps of a band: the last one, the position that it reaches, the number of outliers."""
    what = f"tensor {record.name!r}"
    if last == ESCAPE:
        raise CorruptError(f"{what}: the last outlier gap of a band is an escape")
    if reached >= _positions(record, band):
        raise CorruptError(f"{what}: an outlier lies outside its band")
    if n != n_values:
        raise CorruptError(f"{what}: {n} outliers, {n_values} values")


def apply(
    out: Elements,
    dtype: str,
    record: TensorRecord,
    fetch: Streamed,
    rows: range,
    columns: range,
    permutation: NDArray[np.unsignedinteger] | None = None,
) -> None:
    """Replace the outliers in a part of the matrix, `out` [rows, columns], carrier of `dtype`.

    `permutation`: stored column -> column.
    """
    for band_row, positions, values in bands(record, fetch, rows.start, rows.stop):
        at, column = np.divmod(positions, record.matrix_shape[1])
        at += band_row
        if permutation is not None:
            column = permutation[column].astype(np.int64)
        inside = (at >= rows.start) & (at < rows.stop) & (column >= columns.start) & (column < columns.stop)
        out[at[inside] - rows.start, column[inside] - columns.start] = narrow(values[inside], dtype)


def bands(
    record: TensorRecord, fetch: Streamed, first_row: int, stop_row: int
) -> Iterator[tuple[int, NDArray[np.int64], Float32]]:
    """The outliers of the bands that hold some of the rows: first row of the band, positions in it and values.

    Those of a band come in pieces; what is wrong with it is found with the last one.
    """
    if not isinstance(record.parameters.get("outliers"), dict):
        return
    dtype = record.by_role["outlier_values"].dtype
    for band in _held_bands(record, first_row, stop_row):
        (at, stop), (value, stop_value) = (_span(record, role, band) for role in ROLES)
        n_values, n, reached, last = stop_value - value, 0, -1, 0
        limit = _positions(record, band)
        for piece in range(at, stop, _GAPS_AT_ONCE):
            gaps = fetch("outlier_gaps", piece, min(stop, piece + _GAPS_AT_ONCE))
            ends = gaps != ESCAPE
            steps = reached + np.cumsum(gaps.astype(np.int64) + ends)
            positions = steps[ends]
            reached, last = int(steps[-1]), int(gaps[-1])
            n += positions.size
            if n > n_values or reached >= limit:
                break
            values = fetch("outlier_values", value + n - positions.size, value + n)
            yield band * rows_per_band(record), positions, widen(values, dtype)
        _check_band(record, band, last, reached=reached, n=n, n_values=n_values)


def rows_per_band(record: TensorRecord) -> int:
    """How many rows of the matrix share a band."""
    parameter = record.parameters["outliers"]
    return int(parameter["rows_per_band"]) if isinstance(parameter, dict) else 1


def _positions(record: TensorRecord, band: int) -> int:
    """How many there are in a band."""
    n_rows, n_columns = record.matrix_shape
    per_band = rows_per_band(record)
    return min(per_band, n_rows - band * per_band) * n_columns


def _held_bands(record: TensorRecord, first_row: int, stop_row: int) -> list[int]:
    """Numbers of the bands that hold some of the rows, and outliers."""
    first = first_row // rows_per_band(record)
    stop = -(-stop_row // rows_per_band(record))
    gaps, values = (record.by_role[role].chunks[first:stop].n_elements for role in ROLES)
    held: list[int] = (np.flatnonzero(gaps | values) + first).tolist()
    return held


def _span(record: TensorRecord, role: str, band: int) -> tuple[int, int]:
    chunk = record.by_role[role].chunks[band]
    return chunk.first, chunk.first + chunk.n_elements
