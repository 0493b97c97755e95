"""What a codec is."""

from typing import ClassVar, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Bytes: TypeAlias = NDArray[np.uint8]


class Codec(Protocol):
    """Bytes to bytes, and all that others need to know of it. Stateless: one instance serves all threads."""

    name: ClassVar[str]
    id: ClassVar[int]
    """Its number in a chunk's record (spec/registry.toml)."""
    feature: ClassVar[str | None]
    """The required feature of a file with such chunks; None for one that every reader knows."""
    is_native: ClassVar[bool]
    """Whether native.decode_chunks decodes it; others are decoded one chunk after the other, by `decode`."""
    is_order0: ClassVar[bool]
    """Whether it never stores less than the order-0 entropy of its symbols: that tells whether it is worth trying."""
    device_rate: ClassVar[str]
    """The rate of DeviceRates at which a device decodes it."""

    def encode(self, raw: Bytes) -> bytes:
        """The stored form of `raw` (uint8, one dimension, contiguous). It may be longer than `raw`."""
        ...

    def decode(self, stored: Bytes, out: Bytes) -> None:
        """Fill `out`, whose length is the raw size that the index claims. Raises CorruptError."""
        ...

    def overhead_bytes(self, head: bytes, stored_bytes: int, raw_bytes: int) -> int:
        """Stored bytes that are no elements: headers, tables, directories.

        `head` are the first HEAD_BYTES, or all where there are fewer. More than `stored_bytes` is no sound chunk.
        """
        ...


HEAD_BYTES = 8
