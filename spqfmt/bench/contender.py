"""What a measured coder is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from spqfmt.codecs.base import Bytes

Stored: TypeAlias = bytes | bytearray | memoryview


class Coder(Protocol):
    """A coder of bytes: it packs and unpacks them.

    One instance is called from several threads at once, with different buffers.
    """

    def encode(self, raw: Bytes) -> Stored | None:
        """The stored form, or None if the coder sees that `raw` would not shrink."""
        ...

    def decode(self, stored: Stored, out: Bytes) -> None:
        """Fill `out`, which has the raw size."""
        ...


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Contender:
    """The coder of one row.

    `path` says which code path or level it runs; `block_bytes` is the unit it decodes independently (0: its own
    choice). `whole`: it gets all the data in one call and was made with the number of threads; the others get chunks,
    from as many threads, and release the GIL. `select` runs before each timed call, outside the clock.
    """

    codec: str
    path: str
    block_bytes: int
    coder: Coder
    whole: bool = False
    select: Callable[[], None] = _nothing


Make: TypeAlias = Callable[[int, int], list[Contender]]
"""(element_bytes, threads) -> contenders."""
