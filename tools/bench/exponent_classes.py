"""What exponents of a checkpoint cost: in chunks as they are packed, and in classes of rows or columns.

python tools/bench/exponent_classes.py model.safetensors

Weights are rounded to BF16. Rows (or columns) are sorted by their mean exponent and cut into k classes, each with
its own frequencies. `free` is the order-0 entropy alone, in bits a weight; `paid` adds what a file has besides: the
order of the channels and 350 bytes a class. `best` takes for each matrix what costs least, today's chunks among
them. Decision 0040 is about this.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from spqfmt.codecs.chunks import chunk_sizes
from spqfmt.codecs.elements import to_planes
from spqfmt.kernels.torch_arrays import to_numpy

CLASSES = (2, 4, 8, 16)
CLASS_BYTES = 350
"""What one more class costs, as spqfmt.quantize.layouts counts it."""


def histograms(exponents: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Counts of the 256 exponents in each row, [rows, 256]."""
    n = len(exponents)
    numbered = exponents.astype(np.int64) + 256 * np.arange(n)[:, None]
    return np.bincount(numbered.ravel(), minlength=256 * n).reshape(n, 256)


def entropy_bytes(counts: NDArray[np.int64]) -> float:
    """Order-0 entropy of all classes, [classes, 256], each by its own counts."""
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    bits = -counts * np.log2(shares, out=np.zeros_like(shares), where=counts > 0)
    return float(bits.sum()) / 8


def in_classes(exponents: NDArray[np.uint8], k: int) -> tuple[float, float]:
    """Bytes of the exponents in k classes of rows: their entropy, and with what else it takes."""
    counts = histograms(exponents)
    order = np.argsort(counts @ np.arange(256), kind="stable")
    borders = np.linspace(0, len(order), k + 1).round().astype(np.int64)[:-1]
    free = entropy_bytes(np.add.reduceat(counts[order], borders))
    return free, free + len(order) * np.log2(len(order)) / 8 + CLASS_BYTES * (k - 1)


def main() -> None:
    """Print a line for each way."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    total: dict[str, float] = defaultdict(float)
    n_weights = 0
    for tensor in load_file(parser.parse_args().file).values():
        if tensor.ndim < 2 or not tensor.is_floating_point() or min(tensor.shape) < max(CLASSES):
            continue
        values = to_numpy(tensor.to(torch.bfloat16)).reshape(-1, tensor.shape[-1])
        low, high = to_planes(values.ravel(), "bf16")
        exponents = high.reshape(values.shape)
        n_weights += values.size
        sizes = chunk_sizes(values.size, 16, values.shape[1])
        chunks = np.split(high, np.cumsum(sizes)[:-1])
        costs = {"chunks": sum(entropy_bytes(np.bincount(c, minlength=256)[None]) for c in chunks)}
        bounds = dict(costs)
        for name, matrix in (("rows", exponents), ("columns", exponents.T)):
            for k in CLASSES:
                bounds[f"{k} classes of {name}"], costs[f"{k} classes of {name}"] = in_classes(matrix, k)
        for kind, found in (("free", bounds), ("paid", costs)):
            for name, size in found.items():
                total[f"{name}, {kind}"] += size
            rows_alone = [size for name, size in found.items() if "columns" not in name]
            total[f"best, rows alone, {kind}"] += min(rows_alone)
            total[f"best, {kind}"] += min(found.values())
        total["all together, free"] += entropy_bytes(np.bincount(high, minlength=256)[None])
        total["low bytes, which are stored raw, free"] += entropy_bytes(np.bincount(low, minlength=256)[None])
    print(f"{n_weights:,} weights in matrices; bits a weight:")
    for name, size in total.items():
        print(f"{8 * size / n_weights:8.4f}  {name}")


if __name__ == "__main__":
    main()
