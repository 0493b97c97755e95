"""The choice of codes by error and bits, natively and plainly; the two agree bit for bit.

**Inside GPTQ's feedback** (`choose_codes`).

A block of columns of a matrix is quantized column after column. Weight w of row i and column k lies on the grid
`row_step[i] * column_step[k]`; its code is the cheapest in ((w - value) / U_kk)^2 + slope[i] * bits[code] among the
nearest, its other neighbour, the two below the nearest and 0, or the nearest where the slope is 0. Its error
(w - value) / U_kk times U_km is taken from the row's later columns m of the block. A weight that is further than 127
steps from 0 is an escape: code ESCAPE, no error.

Arguments: `weights` float32 [rows, columns], changed in the block's columns; `block` those columns; `upper`
float32 [n, n], the block's part of U; `row_step`, `slope` float32 [rows]; `column_step` float32 [n]; `bits` float32
[256], of code c at c + 128. Returned are the codes, int8 [rows, n], and the errors, float32 [rows, n].

**By coordinate descent** (`improve_codes`), when all codes are there: each becomes the cheapest in E H E^T + slope *
bits while all others stay, E what the weights have too much, H the damped Hessian. `gradients`, float32 [rows,
columns], is E H; it follows the codes in the block's columns. `hessian` is the block's part of H, float32 [n, n];
`codes`, int8 [rows, n], are changed, but for escapes. Returned is how the values have changed, float32 [rows, n], for
the other columns of E H.

**Paths.** With `borders` codes are paths of a trellis down the rows of each column, and `bits` those of path codes k,
at k + 128: kernels/paths.py. What follows from codes is the same.
"""

from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from spqfmt.kernels import _native
from spqfmt.kernels.paths import LARGEST_CODE, Borders, cheapest_path

Float32: TypeAlias = NDArray[np.float32]
Codes: TypeAlias = NDArray[np.int8]

ESCAPE = -128
_ROWS_AT_ONCE = 16


class _Swept(NamedTuple):
    """A block of columns, `first` to `stop` of `values`, and what all native functions take with it.

    `borders` are those of rows that are done at once.
    """

    name: str
    values: Float32
    first: int
    stop: int
    square: Float32
    row_step: Float32
    column_step: Float32
    slope: Float32
    bits: Float32
    borders: Borders

    def arguments(self) -> dict[str, Any]:
        """Those of the native function, `name` what it calls `square`."""
        rows, columns = self.values.shape
        kept = {"name": self.name, "values": self.values, "n_rows": rows, "stride": columns}
        floats = {
            name: np.ascontiguousarray(getattr(self, name), np.float32)
            for name in ("square", "row_step", "column_step", "slope", "bits")
        }
        borders = {"borders": np.ascontiguousarray(self.borders, np.uint64)}
        return {**kept, "first": self.first, "n_columns": self.stop - self.first, **floats, **borders}


def _at_once(borders: Borders | None, n_rows: int) -> Borders:
    """Tiles, or a few rows at a time where they do not depend on each other."""
    if borders is None:
        return np.append(np.arange(0, n_rows, _ROWS_AT_ONCE), n_rows).astype(np.uint64)
    return borders


def choose_codes(
    weights: Float32,
    block: slice,
    upper: Float32,
    row_step: Float32,
    column_step: Float32,
    slope: Float32,
    bits: Float32,
    *,
    borders: Borders | None = None,
    n_threads: int = 1,
) -> tuple[Codes, Float32]:
    """Native; the result does not depend on the number of threads. ValueError: arrays do not fit together."""
    rows = weights.shape[0]
    first, stop, _ = block.indices(weights.shape[1])
    codes = np.empty((rows, stop - first), np.int8)
    errors = np.empty((rows, stop - first), np.float32)
    swept = _Swept(
        name="upper",
        values=weights,
        first=first,
        stop=stop,
        square=upper,
        row_step=row_step,
        column_step=column_step,
        slope=slope,
        bits=bits,
        borders=_at_once(borders, rows),
    )
    native = _native.choose_codes if borders is None else _native.choose_paths
    native(**swept.arguments(), codes=codes, out=errors, n_threads=n_threads)
    return codes, errors


def choose_codes_plain(
    weights: Float32,
    block: slice,
    upper: Float32,
    row_step: Float32,
    column_step: Float32,
    slope: Float32,
    bits: Float32,
    *,
    borders: Borders | None = None,
) -> tuple[Codes, Float32]:
    """The same in numpy, all rows of a column at once."""
    rows = weights.shape[0]
    first, stop, _ = block.indices(weights.shape[1])
    codes = np.empty((rows, stop - first), np.int8)
    errors = np.zeros((rows, stop - first), np.float32)
    for k in range(stop - first):
        column = weights[:, first + k]
        step = row_step * column_step[k]
        scaled = column / step
        nearest = np.rint(scaled)
        fits = np.abs(nearest) <= LARGEST_CODE
        weight = np.square(step / upper[k, k])
        code = (
            _cheapest(scaled, weight, slope, bits=bits, nearest=np.where(fits, nearest, 0.0))
            if borders is None
            else cheapest_path(scaled, weight, slope, bits=bits, fits=fits, borders=borders)
        )
        value = code.astype(np.float32) * row_step * column_step[k]
        error = np.where(fits, (column - value) / upper[k, k], np.float32(0))
        codes[:, k] = np.where(fits, code, ESCAPE)
        errors[:, k] = error
        weights[:, first + k + 1 : stop] -= np.where(fits[:, None], error[:, None] * upper[k, k + 1 :], 0)
    return codes, errors


def improve_codes(
    gradients: Float32,
    block: slice,
    hessian: Float32,
    codes: Codes,
    row_step: Float32,
    column_step: Float32,
    slope: Float32,
    bits: Float32,
    *,
    borders: Borders | None = None,
    n_threads: int = 1,
) -> Float32:
    """Native; the result does not depend on the number of threads. ValueError: arrays do not fit together."""
    first, stop, _ = block.indices(gradients.shape[1])
    changes = np.empty((gradients.shape[0], stop - first), np.float32)
    swept = _Swept(
        name="hessian",
        values=gradients,
        first=first,
        stop=stop,
        square=hessian,
        row_step=row_step,
        column_step=column_step,
        slope=slope,
        bits=bits,
        borders=_at_once(borders, gradients.shape[0]),
    )
    native = _native.improve_codes if borders is None else _native.improve_paths
    native(**swept.arguments(), codes=codes, out=changes, n_threads=n_threads)
    return changes


def improve_codes_plain(
    gradients: Float32,
    block: slice,
    hessian: Float32,
    codes: Codes,
    row_step: Float32,
    column_step: Float32,
    slope: Float32,
    bits: Float32,
    *,
    borders: Borders | None = None,
) -> Float32:
    """The same in numpy, all rows of a column at once."""
    first, stop, _ = block.indices(gradients.shape[1])
    changes = np.zeros(codes.shape, np.float32)
    for k in range(stop - first):
        step = row_step * column_step[k]
        old = codes[:, k].astype(np.int64)
        scaled = old.astype(np.float32) - gradients[:, first + k] / (hessian[k, k] * step)
        nearest = np.rint(scaled)
        weight = hessian[k, k] * step * step
        is_coded = old != ESCAPE
        if borders is None:
            fits = is_coded & (np.abs(nearest) <= LARGEST_CODE)
            start = np.where(fits, nearest, 0.0).astype(np.float32)
            best = _cheapest(scaled, weight, slope, bits=bits, nearest=start)
            costs = [
                _cost(scaled, weight, slope, bits=bits, code=code) for code in (best, np.where(fits, old, 0))
            ]
            better = fits & (costs[0] < costs[1])
        else:
            best = cheapest_path(scaled, weight, slope, bits=bits, fits=is_coded, borders=borders)
            better = is_coded
        change = np.where(better, (best - old).astype(np.float32) * row_step * column_step[k], np.float32(0))
        codes[:, k] = np.where(better, best, old)
        changes[:, k] = change
        gradients[:, first:stop] += change[:, None] * hessian[k]
    return changes


def _cost(
    scaled: Float32, weight: Float32, slope: Float32, bits: Float32, code: NDArray[np.int64]
) -> Float32:
    distance = scaled - code.astype(np.float32)
    cost: Float32 = weight * distance * distance + slope * bits[code + 128]
    return cost


def _cheapest(
    scaled: Float32, weight: Float32, slope: Float32, bits: Float32, nearest: Float32
) -> NDArray[np.int64]:
    def cost_of(code: NDArray[np.int64]) -> Float32:
        return _cost(scaled, weight, slope, bits=bits, code=code)

    start = nearest.astype(np.int64)
    inward = np.where(start > 0, -1, 1)
    other = start + np.where(scaled > nearest, 1, -1)
    candidates = (
        (other, np.abs(other) <= LARGEST_CODE),
        (start + inward, np.abs(start) > 1),
        (start + 2 * inward, np.abs(start) > 2),
        (np.zeros_like(start), start != 0),
    )
    best, cost = start.copy(), cost_of(start)
    for candidate, allowed in candidates:
        safe = np.where(allowed, candidate, start)
        now = cost_of(safe)
        better = allowed & (now < cost) & (slope > 0)
        best, cost = np.where(better, safe, best), np.where(better, now, cost)
    return best
