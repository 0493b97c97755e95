"""What a pack is asked for, turned into a method and the size that it must hit: once, here.

Bits, `fit` and `fit_memory` come together in `choose`. From there on a target says itself what it comes to in bytes,
what is too little, and what the file says of it.
"""

import math
from dataclasses import dataclass
from math import isfinite
from typing import ClassVar, NamedTuple, TypeAlias

from spqfmt.errors import OptionError
from spqfmt.quantize.ecq.allocation import MOST_BITS
from spqfmt.quantize.registry import METHODS
from spqfmt.sizes import n_bytes_of

KEEPING = "lossless"
"""The method that changes nothing."""
KEEPING_CODES = "keep"
"""The method that changes nothing of what is codes already, in the terms of a scheme."""
FITTING = "ecq"
"""The method that can hit any size."""


@dataclass(frozen=True)
class BitsPerWeight:
    """Mean stored bits of a quantized weight.

    All that the file holds counts but its assets and the tensors that are stored as they are: codes, tables, scales,
    outliers, index with its checksums, and padding.
    """

    of_memory: ClassVar[bool] = False

    bits: float

    def bytes_of(self, n_counted: int, other_bytes: int) -> int:
        """What may be taken: `n_counted` weights have these bits, beside other bytes."""
        return int(self.bits * n_counted / 8) + other_bytes

    def too_little(self, smallest: int, n_counted: int, other_bytes: int) -> str:
        """Why it cannot be had where `smallest` bytes can be."""
        least = math.ceil(100 * 8 * (smallest - other_bytes) / n_counted) / 100
        if least > MOST_BITS:
            return (
                f"the tensors that ecq quantizes have {n_counted} weights, too few for any number of bits; "
                "take another method"
            )
        return f"{self.bits:g} bits a weight are too few for this model; {least:.2f} is the least that works"


@dataclass(frozen=True)
class _Bytes:
    of_memory: ClassVar[bool] = False
    unit: ClassVar[str] = "bytes"

    n_bytes: int

    def bytes_of(self, n_counted: int, other_bytes: int) -> int:
        """What may be taken, of all that is counted."""
        return self.n_bytes

    def too_little(self, smallest: int, n_counted: int, other_bytes: int) -> str:
        """Why it cannot be had where `smallest` bytes can be."""
        what = f"{self.n_bytes} {self.unit}"
        return f"{what} are too few for this model; {smallest} bytes is the smallest size that works"


@dataclass(frozen=True)
class FileBytes(_Bytes):
    """A wanted size of the whole file."""


@dataclass(frozen=True)
class MemoryBytes(_Bytes):
    """The smallest ceiling of `spqfmt plan` that has room for all weights, compressed."""

    of_memory: ClassVar[bool] = True
    unit: ClassVar[str] = "bytes of memory"


Fit: TypeAlias = BitsPerWeight | FileBytes | MemoryBytes


class Choice(NamedTuple):
    """A method's name and what `--bits` says to it, and the size in bytes that it must hit, where one was asked for."""

    method: str
    bits: dict[str, float]
    size: FileBytes | MemoryBytes | None


def choose(
    method: str | None, bits: float | None, file: int | str | None, memory: int | str | None
) -> Choice:
    """Decide by `method`, `bits`, `fit` and `fit_memory`; None is what was not given.

    OptionError for what does not fit.
    """
    if file is not None and memory is not None:
        raise OptionError("--fit and --fit-memory are two sizes to hit; give one")
    size: FileBytes | MemoryBytes | None = None if file is None else FileBytes(_size(file))
    size = size if memory is None else MemoryBytes(_size(memory))
    name = method or (KEEPING if size is None else FITTING)
    if name not in METHODS:
        raise OptionError(f"unknown method {name!r}; there are {', '.join(sorted(METHODS))}")
    if size is not None and name != FITTING:
        raise OptionError(f"method {name} cannot hit a size; --fit and --fit-memory need method {FITTING}")
    if size is not None and bits is not None:
        raise OptionError("--bits and --fit both say how large the weights may be; give one")
    if bits is None or (method is None and size is None):
        return Choice(name, {}, size)
    if name == FITTING:
        return Choice(name, {"bits_per_weight": float(bits)}, size)
    if not isfinite(bits) or bits != int(bits):
        raise OptionError(f"bits of method {name} are a whole number, not {bits:g}; ecq takes any")
    return Choice(name, {"bits": int(bits)}, size)


def _size(size: int | str) -> int:
    n_bytes = n_bytes_of(size)
    if n_bytes < 1:
        raise OptionError("a size to fit into is at least 1 byte")
    return n_bytes


def check_coding(codec: str, *, compresses_all: bool, shards: bool) -> None:
    """Raise OptionError for what does not go together with a target."""
    if codec not in {"auto", "rans"} or not compresses_all:
        raise OptionError(
            f"method {FITTING} counts on the entropy coder: pack with --codec auto or rans, --partial none, then repack"
        )
    if shards:
        raise OptionError(
            f"method {FITTING} hits the size of one file: pack without --shard-size, then repack with it"
        )
