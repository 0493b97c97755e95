"""The orientation and the table classes with which codes take the fewest bytes."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from spqfmt.codecs.elements import Elements
from spqfmt.schemes.base import Encoded
from spqfmt.schemes.codes import Layout
from spqfmt.schemes.uniform import Uniform

_CLASSES = (2, 4, 8)
_CLASS_BYTES = 350
"""What one more class costs: its table, the states of its blocks, its chunk's record and alignment."""


@dataclass(frozen=True)
class LaidOut(Uniform):
    """A uniform tensor whose layout is chosen when it is encoded: what is only simulated needs none."""

    def encode(self) -> Encoded:
        """Encode as Uniform does, with the best layout."""
        plain = Uniform(**{field.name: getattr(self, field.name) for field in fields(Uniform)})
        return replace(plain, layout=choose_layout(self.codes)).encode()


def choose_layout(codes: Elements, *, by_rows: bool = False) -> Layout:
    """The layout with the smallest estimate for int8 codes [rows, columns].

    Candidates: row-major order, and for rows and for columns 2, 4 or 8 classes of channels, sorted by magnitude. The
    estimate is each class's order-0 entropy, its fixed cost, and the channel order. With `by_rows` only rows are tried:
    a lookup of one row would decode all columns, and turning takes memory.
    """
    best, best_bytes = Layout(), _entropy_bytes(_histograms(codes).sum(0, keepdims=True))
    channels_of = {"rows": codes} if by_rows else {"rows": codes, "columns": codes.T}
    for orientation, channels in channels_of.items():
        for layout, size in _candidates(orientation, channels):
            if size < best_bytes:
                best, best_bytes = layout, size
    return best


def _candidates(orientation: str, channels: Elements) -> Iterator[tuple[Layout, float]]:
    n = channels.shape[0]
    histograms = _histograms(channels)
    magnitude = histograms @ np.abs(np.arange(-128, 128))
    order = np.argsort(magnitude, kind="stable").astype(np.int64)
    order_bytes = n * max(1.0, np.log2(n)) / 8
    for n_classes in _CLASSES:
        if n_classes > n:
            return
        borders = np.linspace(0, n, n_classes + 1).round().astype(np.int64)
        classes = np.add.reduceat(histograms[order], borders[:-1], axis=0)
        size = _entropy_bytes(classes) + order_bytes + _CLASS_BYTES * (n_classes - 1)
        yield Layout(orientation, order, tuple(np.diff(borders).tolist())), size


def _histograms(channels: Elements) -> NDArray[np.int64]:
    """Counts of the codes -128 to 127 in each channel, [channels, 256]."""
    n = channels.shape[0]
    shifted = channels.astype(np.int64) + 128 + 256 * np.arange(n)[:, None]
    return np.bincount(shifted.reshape(-1), minlength=256 * n).reshape(n, 256)


def _entropy_bytes(histograms: NDArray[np.int64]) -> float:
    """Order-0 entropy of all classes, each by its own counts, in bytes."""
    totals = histograms.sum(1, keepdims=True)
    shares = histograms / np.maximum(totals, 1)
    bits = -histograms * np.log2(shares, out=np.zeros_like(shares), where=histograms > 0)
    return float(bits.sum()) / 8
