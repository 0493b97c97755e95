"""The orientation and the table classes with which codes take the fewest bytes."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spqfmt.codecs.elements import Elements
from spqfmt.kernels import native
from spqfmt.schemes.base import Encoded
from spqfmt.schemes.codes import Layout
from spqfmt.schemes.uniform import Uniform

_CLASSES = (2, 4, 8)
_OF_INT8 = np.abs(np.arange(256, dtype=np.uint8).view(np.int8).astype(np.int64))
_WIDE = 1024
"""Channels of so many codes are counted one by one: a call takes less time than its codes."""
_AT_ONCE = 1 << 20
"""Codes that are counted at once."""
_CLASS_BYTES = 350
"""What one more class costs: its table, the states of its blocks, its chunk's record and alignment."""


@dataclass(frozen=True)
class LaidOut(Uniform):
    """A uniform tensor whose layout is chosen when it is encoded: what is only simulated needs none."""

    def encode(self) -> Encoded:
        """Encode as Uniform does, with the best layout."""
        plain = Uniform(**{field.name: getattr(self, field.name) for field in fields(Uniform)})
        return replace(plain, layout=choose_layout(self.codes)).encode()


def choose_layout(
    codes: Elements, *, by_rows: bool = False, magnitudes: NDArray[Any] = _OF_INT8, class_bytes: float = 0.0
) -> Layout:
    """The layout with the smallest estimate for codes [rows, columns] of a byte each.

    `magnitudes` [256] are those of what each byte stands for, by default as int8.

    Candidates: row-major order, and for rows and for columns 2, 4 or 8 classes of channels, sorted by magnitude. The
    estimate is each class's order-0 entropy, its fixed cost, and the channel order. With `by_rows` only rows are tried:
    a lookup of one row would decode all columns, and turning takes memory. A class costs `class_bytes` more.
    """
    by_row = _histograms(codes)
    best, best_bytes = Layout(), _entropy_bytes(by_row.sum(0, keepdims=True))
    for orientation in ("rows",) if by_rows else ("rows", "columns"):
        histograms = by_row if orientation == "rows" else _histograms(codes.T)
        for layout, size in _candidates(orientation, histograms, magnitudes, _CLASS_BYTES + class_bytes):
            if size < best_bytes:
                best, best_bytes = layout, size
    return best


def _candidates(
    orientation: str, histograms: NDArray[np.int64], magnitudes: NDArray[Any], class_bytes: float
) -> Iterator[tuple[Layout, float]]:
    n = len(histograms)
    magnitude = histograms @ magnitudes
    order = np.argsort(magnitude, kind="stable").astype(np.int64)
    order_bytes = n * max(1.0, np.log2(n)) / 8
    for n_classes in _CLASSES:
        if n_classes > n:
            return
        borders = np.linspace(0, n, n_classes + 1).round().astype(np.int64)
        classes = np.add.reduceat(histograms[order], borders[:-1], axis=0)
        size = _entropy_bytes(classes) + order_bytes + class_bytes * (n_classes - 1)
        yield Layout(orientation, order, tuple(np.diff(borders).tolist())), size


def _histograms(channels: Elements) -> NDArray[np.int64]:
    """Counts of the bytes of each channel, [channels, 256]."""
    n, width = channels.shape
    if width >= _WIDE:
        counts = (native.histogram(np.ascontiguousarray(channel)) for channel in channels)
        return np.array(list(counts), np.int64).reshape(n, 256)
    found, each = np.empty((n, 256), np.int64), max(1, _AT_ONCE // max(1, width))
    for first in range(0, n, each):
        some = channels[first : first + each].view(np.uint8)
        shifted = some.astype(np.int64) + 256 * np.arange(len(some))[:, None]
        found[first : first + each] = np.bincount(shifted.reshape(-1), minlength=256 * len(some)).reshape(
            -1, 256
        )
    return found


def _entropy_bytes(histograms: NDArray[np.int64]) -> float:
    """Order-0 entropy of all classes, each by its own counts, in bytes."""
    totals = histograms.sum(1, keepdims=True)
    shares = histograms / np.maximum(totals, 1)
    bits = -histograms * np.log2(shares, out=np.zeros_like(shares), where=histograms > 0)
    return float(bits.sum()) / 8
