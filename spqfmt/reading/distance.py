"""How far a restored tensor is from a reference."""

import math
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from spqfmt.codecs.elements import Elements
from spqfmt.reading.report.records import Distance
from spqfmt.schemes.floats import widen

_BLOCK = 1 << 15


def to_numbers(elements: Elements, dtype: str) -> NDArray[np.inexact]:
    """What a carrier stands for, same shape: float32 where that is exact, else float64 (i64 and u64: rounded).

    Complex numbers are complex128.
    """
    if dtype == "c64":
        return elements.astype(np.complex128)
    if dtype in {"f64", "i64", "i32", "u64", "u32"}:
        return elements.astype(np.float64)
    return widen(elements, dtype)


def distance(
    parts: Iterable[tuple[Elements, Elements]], restored_dtype: str, reference_dtype: str
) -> Distance:
    """Measure the distance of a restored tensor to a reference: carriers of the same elements of both, part by part.

    Sums of squares are exact to about six digits.
    """
    of_difference, of_reference, largest, n = 0.0, 0.0, 0.0, 0
    for restored, reference in _in_blocks(parts):
        a, b = to_numbers(restored, restored_dtype), to_numbers(reference, reference_dtype)
        n += b.size
        with np.errstate(invalid="ignore", over="ignore"):
            difference = a - b
        if not np.isfinite(difference).all():
            same = (a == b) | (np.isnan(a) & np.isnan(b))
            b = np.where(np.isfinite(b), b, 0)
            difference = np.where(same, 0, difference)
            if not np.isfinite(difference).all():
                return Distance(None, None, None)
        of_difference += _sum_of_squares(difference)
        of_reference += _sum_of_squares(b)
        largest = max(largest, float(np.abs(difference).max()))
    if not of_difference:
        return Distance(0.0, 0.0, 0.0)
    relative = math.sqrt(of_difference / of_reference) if of_reference else None
    return Distance(relative, math.sqrt(of_difference / n), largest)


def _in_blocks(parts: Iterable[tuple[Elements, Elements]]) -> Iterator[tuple[Elements, Elements]]:
    for restored, reference in parts:
        a, b = restored.reshape(-1), reference.reshape(-1)
        for at in range(0, b.size, _BLOCK):
            yield a[at : at + _BLOCK], b[at : at + _BLOCK]


def _sum_of_squares(values: NDArray[np.inexact]) -> float:
    with np.errstate(over="ignore"):
        total = float(np.vdot(values, values).real)
    # float32's range is too small for squares of very large or very small numbers.
    if values.dtype == np.float32 and not 1e-24 < total < 1e36:
        wide = values.astype(np.float64)
        total = float(wide @ wide)
    return total


def same_elements(a: Elements, b: Elements) -> bool:
    """Whether two carriers of one dtype and shape have the same bits."""
    bits = np.dtype(f"u{a.dtype.itemsize}")
    return bool(np.array_equal(np.ascontiguousarray(a).view(bits), np.ascontiguousarray(b).view(bits)))
