"""What is loaded, and what a loader is."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np

from spqfmt.codecs.base import Bytes


@dataclass(frozen=True)
class Array:
    """The bytes of one stream's elements, each of `element_bytes`."""

    name: str
    raw: Bytes
    element_bytes: int


@dataclass(frozen=True)
class Payload:
    """The decoded streams of a model of `n_weights`."""

    name: str
    n_weights: int
    arrays: Sequence[Array]

    @property
    def is_codes(self) -> bool:
        """Whether the weights take less than BF16's two bytes."""
        return sum(array.raw.size for array in self.arrays) < 2 * self.n_weights

    def as_bf16(self) -> "Payload":
        """The payload as that many BF16 weights: only their number matters to a reader that decodes nothing."""
        raw = np.resize(np.arange(1 << 16, dtype=np.uint16), self.n_weights).view(np.uint8)
        return replace(self, arrays=[Array("weights", raw, 2)])


class Loader(ABC):
    """One file, loaded with one number of threads into `out`, memory that is reused from call to call."""

    def __init__(self, container: str, path: Path, payload: Payload, threads: int) -> None:
        self.container = container
        self.path = path
        self.payload = payload
        self.threads = threads
        self.out: list[Bytes] = [np.ones_like(array.raw) for array in payload.arrays]

    @abstractmethod
    def load(self) -> None:
        """Open the file and decode all of it."""

    def is_right(self) -> bool:
        """Whether the last `load` gave the payload."""
        pairs = zip(self.out, self.payload.arrays, strict=True)
        return all(np.array_equal(out, array.raw) for out, array in pairs)


MakeLoaders: TypeAlias = Callable[[Payload, Path, int], list[Loader]]
"""(payload, folder, threads) -> loaders of the files that were written into the folder."""


def read_into(path: Path, buffers: Sequence[Bytes], offset: int = 0) -> None:
    """Fill the buffers one after the other with what stands in the file from `offset` on."""
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        for buffer in buffers:
            view, at = buffer.data, 0
            while at < len(view):
                at += file.readinto(view[at:]) or len(view)
