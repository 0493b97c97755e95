"""What a reader must restore, computed with numpy from the formulas of FORMAT.md 5: no code of any decoder."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spq_vectors.encode import BITS

F32 = NDArray[np.float32]


SMALL = {
    "f8_e4m3": (3, 7), "f8_e5m2": (2, 15), "f8_e4m3fnuz": (3, 8), "f8_e5m2fnuz": (2, 16), "f6_e2m3": (3, 1),
    "f6_e3m2": (2, 3), "f4_e2m1": (1, 1), "f8_e8m0": (0, 127),
}  # fmt: skip


def f32(bits: Sequence[int], dtype: str = "f32") -> F32:
    """Return the binary32 numbers of stored floats."""
    if dtype in SMALL:
        return small(bits, dtype)
    if dtype == "f16":
        return np.array(bits, np.uint16).view(np.float16).astype(np.float32)
    shift = 16 if dtype == "bf16" else 0
    return (np.array(bits, np.uint32) << shift).view(np.float32)


def small(bits: Sequence[int], dtype: str) -> F32:
    """Return the numbers of small floats: their bits, moved into a binary32, are the number over 2^(127 - bias)."""
    mantissa_bits, bias = SMALL[dtype]
    stored = np.array(bits, np.uint32)
    if dtype == "f8_e8m0":
        found = (stored << 23).view(np.float32).copy()
        found[stored == 0] = np.float32(2.0**-127)
        found[stored == 255] = np.nan
        return found
    width = BITS[dtype]
    sign, rest = stored >> (width - 1), stored & ((1 << (width - 1)) - 1)
    moved = (rest << (23 - mantissa_bits)).view(np.float32) * np.float32(2.0 ** (127 - bias))
    found = np.where(sign == 1, -moved, moved).astype(np.float32)
    if dtype == "f8_e4m3":
        found[rest == 127] = np.nan
    if dtype == "f8_e5m2":
        found = (stored << 8).astype(np.uint16).view(np.float16).astype(np.float32)
    if dtype.endswith("fnuz"):
        found[stored == 128] = np.nan
    return found


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


def second_level(
    codes: NDArray[Any], steps: F32, zeros: F32 | None, rows: int, groups: int, minimums: F32 | None = None
) -> F32:
    """Return scales, zero points or minimums from their second level; `rows` by `groups` is a tile."""
    tile = np.ix_(np.arange(codes.shape[0]) // rows, np.arange(codes.shape[1]) // groups)
    numbers = codes.astype(np.float32)
    if zeros is not None:
        numbers = numbers - zeros[tile]
    numbers = steps[tile] * numbers
    return numbers if minimums is None else numbers - minimums[tile]


def grouped(
    codes: NDArray[Any],
    group_size: int,
    scale: F32,
    zero_point: F32 | None = None,
    minimum: F32 | None = None,
    line: NDArray[np.int64] | None = None,
) -> F32:
    """Return the matrix of 5.5, its columns in stored order. `codes` are numbers, `line` is that of each row."""
    lines = np.arange(codes.shape[0]) if line is None else line
    group = np.ix_(lines, np.arange(codes.shape[1]) // group_size)
    numbers = codes.astype(np.float32)
    with np.errstate(over="ignore"):
        if zero_point is not None:
            return scale[group] * (numbers - zero_point[group])
        if minimum is not None:
            return scale[group] * numbers - minimum[group]
        return scale[group] * numbers
