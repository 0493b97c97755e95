"""What a reader must restore, computed with numpy from the formulas of FORMAT.md 5: no code of any decoder."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]


def f32(bits: Sequence[int], dtype: str = "f32") -> F32:
    """Return the binary32 numbers of stored floats."""
    if dtype == "f16":
        return np.array(bits, np.uint16).view(np.float16).astype(np.float32)
    shift = 16 if dtype == "bf16" else 0
    return (np.array(bits, np.uint32) << shift).view(np.float32)


def bits_of(numbers: Sequence[float], dtype: str) -> list[int]:
    """Return the bits of numbers that are exact in a dtype or may be rounded to it."""
    data = restored(np.array(numbers, np.float32), dtype)
    width = {"f64": np.uint64, "f32": np.uint32}.get(dtype, np.uint16)
    return [int(value) for value in np.frombuffer(data, width)]


def restored(weights: F32, dtype: str) -> bytes:
    """Round binary32 weights to the tensor's dtype; little-endian bytes in row-major order."""
    with np.errstate(over="ignore"):
        if dtype == "bf16":
            bits = np.ascontiguousarray(weights).view(np.uint32).astype(np.uint64)
            return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()
        return weights.astype({"f64": "<f8", "f32": "<f4", "f16": "<f2"}[dtype]).tobytes()


def log8(elements: Sequence[int], octave_steps: int, bias: int) -> F32:
    """Return scales of dtype log8; the table is computed, not typed."""
    v = np.array(elements) + bias
    table = np.exp2(np.arange(octave_steps, dtype=np.longdouble) / octave_steps).astype(np.float32)
    scales: F32 = np.ldexp(table[v % octave_steps], v // octave_steps).astype(np.float32)
    return scales


def uniform(codes: NDArray[np.int64], step: float, row_scales: F32 | None, column_scales: F32 | None) -> F32:
    """Return the matrix of 5.3."""
    steps = np.full(codes.shape[0], step, np.float32)
    if row_scales is not None:
        steps = np.multiply(steps, row_scales, dtype=np.float32)
    weights = np.multiply(codes.astype(np.float32), steps[:, None], dtype=np.float32)
    return (
        weights if column_scales is None else np.multiply(weights, column_scales[None, :], dtype=np.float32)
    )


def second_level(codes: NDArray[np.int64], steps: F32, zeros: F32 | None, rows: int, groups: int) -> F32:
    """Return scales, zero points or minimums from their second level; `rows` by `groups` is a tile."""
    tile = np.ix_(np.arange(codes.shape[0]) // rows, np.arange(codes.shape[1]) // groups)
    numbers = codes.astype(np.float32)
    if zeros is not None:
        numbers = numbers - zeros[tile]
    return steps[tile] * numbers


def grouped(
    codes: NDArray[np.int64],
    group_size: int,
    scale: F32,
    zero_point: F32 | None = None,
    minimum: F32 | None = None,
) -> F32:
    """Return the matrix of 5.5, its columns in stored order."""
    group = np.arange(codes.shape[1]) // group_size
    numbers = codes.astype(np.float32)
    if zero_point is not None:
        return scale[:, group] * (numbers - zero_point[:, group])
    if minimum is not None:
        return scale[:, group] * numbers - minimum[:, group]
    return scale[:, group] * numbers
