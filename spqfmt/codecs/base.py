"""What a codec is."""

from typing import ClassVar, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Bytes: TypeAlias = NDArray[np.uint8]


class Parts(Protocol):
    """A plane that is decoded part by part, so that nobody needs room for all of it."""

    constant: int | None
    """What all raw bytes are, where the stored bytes say so."""

    def read(self, first: int, out: Bytes) -> None:
        """Fill `out` with the raw bytes from `first` on. Raises CorruptError."""
        ...


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
    constant_bytes: ClassVar[int]
    """Stored bytes of a plane all of whose bytes are one; 0 where the codec does not say that of a plane."""
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

    def parts(self, stored: Bytes, raw_bytes: int) -> Parts:
        """The same plane part by part; all parts together break the rules that the whole would. Raises CorruptError."""
        ...


HEAD_BYTES = 8
