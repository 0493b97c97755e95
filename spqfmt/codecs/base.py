"""What a codec is."""

from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Bytes: TypeAlias = NDArray[np.uint8]


class Codec(Protocol):
    """Bytes to bytes. Stateless: one instance serves all threads."""

    name: str

    def encode(self, raw: Bytes) -> bytes:
        """The stored form of `raw` (uint8, one dimension, contiguous). It may be longer than `raw`."""
        ...

    def decode(self, stored: Bytes, out: Bytes) -> None:
        """Fill `out`, whose length is the raw size that the index claims. Raises CorruptError."""
        ...
