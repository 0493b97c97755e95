"""How far codes chosen by error and bits lie above the rate-distortion bound, each by itself and along a trellis.

    python tools/paper/trellis_gap.py

A normal variable of deviation 1, order-0 entropies, prices of bits as ecq has them (decision 0064). A line for each
step and length of tiles: bits a weight, and how many of them are above 1/2 log2(1 / mean squared error).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from spqfmt.quantize.ecq.coding import APART, Coding
from spqfmt.quantize.ecq.counts import code_bits, counts_of, entropy_bits

ROWS, COLUMNS = 4096, 64
TILES = (4096, 256, 128, 64, 32, 16)
STEPS = (0.25, 0.5, 0.75, 1.0, 1.5)
"""Steps of the grid for codes chosen each by itself; along a trellis half of them."""
_PASSES = 6


def gap(
    normal: np.ndarray[tuple[int, int], np.dtype[np.float32]], step: float, coding: Coding
) -> tuple[float, float]:
    """Bits a weight, and those above the bound."""
    slope = coding.error * math.log(2) / 6 * step**2
    steps = {"row_step": np.full(ROWS, step, np.float32), "column_step": np.ones(COLUMNS, np.float32)}
    counts = counts_of(coding.stored(np.rint(normal / step).astype(np.int8)))
    codes = np.zeros(normal.shape, np.int8)
    for _ in range(_PASSES):
        codes, _errors = coding.choose(
            normal.copy(),
            slice(0, COLUMNS),
            np.eye(COLUMNS, dtype=np.float32),
            **steps,
            slope=np.full(ROWS, slope, np.float32),
            bits=code_bits(counts),
        )
        counts = counts_of(coding.stored(codes))
    bits = entropy_bits(counts) / codes.size
    squared = float(np.square(normal - codes * np.float32(step), dtype=np.float64).mean())
    return bits, bits - 0.5 * math.log2(1 / squared)


def lines() -> Iterator[str]:
    """Markdown, a row for each step."""
    normal = np.random.default_rng(1).normal(0, 1, (ROWS, COLUMNS)).astype(np.float32)
    yield "| each by itself | " + " | ".join(f"tiles of {rows}" for rows in TILES) + " |"
    yield "|---" * (len(TILES) + 1) + "|"
    for step in STEPS:
        found = [gap(normal, step, APART)]
        for rows in TILES:
            borders = np.append(np.arange(0, ROWS, rows), ROWS).astype(np.uint64)
            found.append(gap(normal, step / 2, Coding(borders)))
        yield "| " + " | ".join(f"{bits:.2f}: {above:.3f}" for bits, above in found) + " |"


if __name__ == "__main__":
    print("\n".join(lines()))
