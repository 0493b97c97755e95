"""Print the figures that the decisions in this folder give.

python spec/decisions/measure.py
"""

import json
import math
import sys
from pathlib import Path

import numpy as np
import zstandard
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools" / "generate"))

from spq_vectors import encode

Ints = NDArray[np.int64]
RANDOM = np.random.default_rng(0)


def entropy(symbols: Ints) -> float:
    """Return the order-0 entropy in bits."""
    counts = np.bincount(symbols)
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log2(p)).sum())


def normal_codes() -> Ints:
    """Return 65,536 int8 codes of normal weights with a standard deviation of 20 steps, as bytes."""
    return np.clip(np.round(RANDOM.normal(0, 20, 65536)), -127, 127).astype(np.int64) + 128


def blocks(codes: Ints) -> None:
    """0001: what small blocks cost."""
    bound = entropy(codes) * len(codes) / 8
    for block_log2 in (10, 12, 14, 15, 16):
        n_bytes = len(encode.Rans(block_log2)(bytes(codes.tolist()))[1])
        print(f"0001 blocks of {1 << block_log2} symbols: {n_bytes / bound - 1:.2%} above order-0 entropy")


def frequency_bits(codes: Ints) -> None:
    """0001: what rounding the frequencies costs."""
    counts = np.bincount(codes)
    p = counts[counts > 0] / len(codes)
    for bits in (10, 11, 12, 13):
        freq = np.maximum(np.floor(p * 2**bits), 1)
        while (missing := 2**bits - freq.sum()) != 0:
            change = np.sign(missing)
            gain = p * np.log2(np.maximum(freq + change, 1e-9) / freq)
            freq[np.argmax(gain)] += change
        cost = -(p * np.log2(freq / 2**bits)).sum()
        print(f"0001 frequencies of {bits} bits: {cost / entropy(codes) - 1:.2%} above order-0 entropy")


def gaps() -> None:
    """0004: gap bytes against the entropy of a geometric gap."""
    for share in (0.001, 0.01, 0.05):
        positions = np.flatnonzero(RANDOM.random(8_000_000) < share)[:100_000]
        steps = np.diff(positions, prepend=-1) - 1
        escapes = int((steps // 255).sum())
        symbols = np.concatenate([np.full(escapes, 255), steps % 255])
        bits = entropy(symbols) * len(symbols) / len(steps)
        bound = -math.log2(share) - (1 - share) / share * math.log2(1 - share)
        print(f"0004 {share:.1%} outliers: {bits:.2f} bits a position, a geometric gap has {bound:.2f}")


def planes() -> None:
    """0006: entropy of bf16 planes with and without the rotation."""
    bits = RANDOM.normal(0, 0.02, 1 << 20).astype(np.float32).view(np.uint32).astype(np.int64)
    stored = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    rotated = stored << 1 & 0xFFFF | stored >> 15
    for name, values in (("as they are", stored), ("rotated", rotated)):
        print(
            f"0006 bf16 {name}: high plane {entropy(values >> 8):.3f} bits, low plane {entropy(values & 255):.3f}"
        )


def index() -> None:
    """0007: an index of 224 tensors with 32 chunks each."""
    tensors = []
    for layer in range(32):
        for name in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"):
            stored, crc = RANDOM.integers(500000, 700000, 32), RANDOM.integers(0, 2**32, 32)
            chunks = [[1 << 20, int(n), 2, int(c)] for n, c in zip(stored, crc, strict=True)]
            stream = {"role": "codes", "dtype": "i8", "n": 1 << 25, "chunks": chunks}
            record = {"name": f"model.layers.{layer}.{name}.weight", "shape": [4096, 8192], "dtype": "bf16"}
            parameters = {"step": 1008981770, "orientation": "rows"}
            tensors.append({**record, "scheme": "uniform", "parameters": parameters, "streams": [stream]})
    text = json.dumps(tensors, separators=(",", ":")).encode()
    stored_text = zstandard.ZstdCompressor(level=19).compress(text)
    print(
        f"0007 {len(text) / (224 * 32):.0f} bytes of JSON a chunk, {len(stored_text) / (224 * 32):.1f} compressed"
    )
    bomb = zstandard.ZstdCompressor(level=19).compress(json.dumps([[]] * 1_000_000).encode())
    print(f"0007 a list of 1,000,000 empty lists compresses {4_000_000 / len(bomb):.0f} : 1")


if __name__ == "__main__":
    drawn = normal_codes()
    blocks(drawn)
    frequency_bits(drawn)
    gaps()
    planes()
    index()
