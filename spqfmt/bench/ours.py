"""The package's rans codec as contenders: by code path and block size."""

from functools import partial

import numpy as np

from spqfmt.bench.contender import Contender, Stored
from spqfmt.codecs.base import Bytes
from spqfmt.codecs.elements import order0_bits
from spqfmt.container.encode import MIN_SAVING
from spqfmt.kernels import native

SMALL_BLOCK_LOG2 = 14  # 16 KiB, what a GPU with few chunks in flight wants


class Rans:
    """A chunk as the writer makes it: raw where the order-0 entropy says that coding would not pay."""

    def __init__(self, block_log2: int) -> None:
        self._block_log2 = block_log2

    def encode(self, raw: Bytes) -> Stored | None:
        if order0_bits(raw) / 8 >= raw.size * (1 - MIN_SAVING):
            return None
        return native.rans_encode(raw, self._block_log2)

    def decode(self, stored: Stored, out: Bytes) -> None:
        native.rans_decode(stored, out)


def default_block_bytes() -> int:
    """The block size that the encoder chooses for a chunk of the writer's size (FORMAT.md 4.3: byte 2 of the chunk)."""
    return 1 << native.rans_encode(np.arange(1 << 20, dtype=np.uint8) & 1)[2]


def make(threads: int) -> list[Contender]:
    """Every path that this processor has, with 16 KiB blocks and the default ones.

    More than one thread: the best path and the default block only, the rest scales alike.
    """
    paths = native.available_kernels()
    best = paths[0]
    default = default_block_bytes()
    found = []
    for path in paths if threads == 1 else [best]:
        for block_bytes in sorted({1 << SMALL_BLOCK_LOG2, default} if threads == 1 else {default}):
            coder = Rans(block_bytes.bit_length() - 1)
            label = f"{path} (best)" if path == best else path
            select = partial(native.default_kernels, path)
            found.append(Contender("rans", label, block_bytes, coder, select=select))
    return found
