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
from spqfmt.schemes.base import Fetch, Float32, Roles, StreamData, check_int
from spqfmt.schemes.floats import narrow, widen

ROLES = ("outlier_gaps", "outlier_values")
PARAMETERS: Mapping[str, Wanted] = {"outliers": {"rows_per_band": "scalar"}}
DTYPES = ("f32", "f16", "bf16")
ESCAPE = wire.OUTLIER_GAP_ESCAPE
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


def _from_gaps(gaps: NDArray[np.uint8], n_positions: int, what: str) -> NDArray[np.int64]:
    if gaps.size and gaps[-1] == ESCAPE:
        raise CorruptError(f"{what}: the last outlier gap of a band is an escape")
    ends = gaps != ESCAPE
    reached = np.cumsum(gaps.astype(np.int64) + ends) - 1
    if gaps.size and reached[-1] >= n_positions:
        raise CorruptError(f"{what}: an outlier lies outside its band")
    positions: NDArray[np.int64] = reached[ends]
    return positions


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


def verify(record: TensorRecord, fetch: Fetch) -> None:
    """Every outlier has its place and its value."""
    for _ in bands(record, fetch, 0, record.matrix_shape[0]):
        pass


def apply(matrix: Elements, dtype: str, record: TensorRecord, fetch: Fetch, rows: range) -> None:
    """Replace the outliers in these rows of the stored matrix, carrier of `dtype`, in place."""
    for band_row, positions, values in bands(record, fetch, rows.start, rows.stop):
        at, columns = np.divmod(positions, record.matrix_shape[1])
        at += band_row
        inside = (at >= rows.start) & (at < rows.stop)
        matrix[at[inside] - rows.start, columns[inside]] = narrow(values[inside], dtype)


def bands(
    record: TensorRecord, fetch: Fetch, first_row: int, stop_row: int
) -> Iterator[tuple[int, NDArray[np.int64], Float32]]:
    """First row, positions and values of the outliers of each band that holds some of the rows, if it has any."""
    parameter = record.parameters.get("outliers")
    if not isinstance(parameter, dict):
        return
    n_rows, n_columns = record.matrix_shape
    per_band = int(parameter["rows_per_band"])
    streams = record.by_role["outlier_gaps"], record.by_role["outlier_values"]
    first_band, stop_band = first_row // per_band, -(-stop_row // per_band)
    of_bands = [stream.chunks[first_band:stop_band] for stream in streams]
    held = np.flatnonzero(of_bands[0].n_elements | of_bands[1].n_elements)
    for band in (held + first_band).tolist():
        chunks = [stream.chunks[band] for stream in streams]
        band_row = band * per_band
        gaps, values = (
            fetch(stream.role, chunk.first, chunk.first + chunk.n_elements)
            for stream, chunk in zip(streams, chunks, strict=True)
        )
        what = f"tensor {record.name!r}"
        positions = _from_gaps(gaps, min(per_band, n_rows - band_row) * n_columns, what)
        if positions.size != values.size:
            raise CorruptError(f"{what}: {positions.size} outliers, {values.size} values")
        yield band_row, positions, widen(values, streams[1].dtype)
