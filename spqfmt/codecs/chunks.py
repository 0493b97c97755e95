"""Elements -> encoded chunks: the choice of chunk borders and of the codec of each plane."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

from spqfmt.codecs.elements import Elements

TARGET_CHUNK_BYTES = 1 << 20
"""Big enough that tables and blocks cost little, small enough to be decoded while the next is read."""


class EncodedPlane(NamedTuple):
    """The stored bytes of one chunk plane. `entropy_bits` is None for one that is copied from another file."""

    stored: bytes
    codec: int
    crc32: int
    entropy_bits: float | None


class EncodedChunk(NamedTuple):
    """One chunk, ready to be written."""

    n_elements: int
    planes: tuple[EncodedPlane, ...]


@dataclass(frozen=True)
class CodecPolicy:
    """Which codec a chunk gets. `codec` is auto, raw, zstd or rans; `every` is the N of partial compression."""

    codec: str = "auto"
    every: int = 1

    def compresses(self, chunk_number: int) -> bool:
        """Whether this chunk of weights is compressed at all: the last of every N (Double Compression)."""
        return chunk_number % self.every == self.every - 1

    @property
    def partial_plan(self) -> dict[str, object] | None:
        """What a file's index says of it (FORMAT.md 3.4)."""
        return None if self.every == 1 else {"rule": "every", "n": self.every}


def chunk_sizes(n: int, bits: int, row_elements: int, target_bytes: int = TARGET_CHUNK_BYTES) -> list[int]:
    """Element counts of the chunks of `n` elements: even shares near the target, cut between rows where rows are short.

    `row_elements` is what one row (or column, by orientation) holds; all but the last count make whole bytes.
    """
    unit_bits = min(bits, 8)
    n_chunks = max(1, ceil(n * unit_bits / 8 / target_bytes))
    share = ceil(n / n_chunks)
    unit = row_elements if row_elements <= share else 1
    while unit * unit_bits % 8:
        unit *= 2
    size = max(unit, ceil(share / unit) * unit)
    return [min(size, n - first) for first in range(0, n, size)]


def split(elements: Elements, sizes: Sequence[int]) -> Iterator[Elements]:
    """The runs of `elements` that the chunks hold."""
    first = 0
    for size in sizes:
        yield elements[first : first + size]
        first += size
