"""The size that a pack must hit: bits a weight, a file's bytes, or the memory that its model takes."""

from dataclasses import dataclass
from typing import TypeAlias

from spqfmt.errors import OptionError
from spqfmt.quantize.base import MethodOptions
from spqfmt.sizes import parse_size

FITTING = "ecq"
"""The method that can hit any size."""


@dataclass(frozen=True)
class BitsPerWeight:
    """Mean stored bits of a quantized weight.

    All that the file holds counts but its assets and the tensors that are stored as they are: codes, tables, scales,
    outliers, index with its checksums, and padding.
    """

    bits: float


@dataclass(frozen=True)
class FileBytes:
    """The whole file."""

    n_bytes: int


@dataclass(frozen=True)
class MemoryBytes:
    """The smallest ceiling of `spqfmt plan` that has room for all weights, compressed."""

    n_bytes: int


Fit: TypeAlias = BitsPerWeight | FileBytes | MemoryBytes


def parse_fit(file: int | str | None, memory: int | str | None) -> FileBytes | MemoryBytes | None:
    """From `fit` and `fit_memory`, of which at most one is given. Raises OptionError."""
    if file is not None and memory is not None:
        raise OptionError("--fit and --fit-memory are two sizes to hit; give one")
    if file is not None:
        return FileBytes(_size(file))
    return None if memory is None else MemoryBytes(_size(memory))


def _size(size: int | str) -> int:
    n_bytes = parse_size(size) if isinstance(size, str) else size
    if n_bytes < 1:
        raise OptionError("a size to fit into is at least 1 byte")
    return n_bytes


def check_fit(
    fit: Fit | None, asked: MethodOptions, method: str, codec: str, *, compresses_all: bool, shards: bool
) -> None:
    """Raise OptionError for what does not go together."""
    if fit is None:
        return
    if method != FITTING:
        raise OptionError(f"method {method} cannot hit a size; --fit and --fit-memory need method {FITTING}")
    if not isinstance(fit, BitsPerWeight) and asked.bits_per_weight is not None:
        raise OptionError("--bits and --fit both say how large the weights may be; give one")
    if codec not in {"auto", "rans"} or not compresses_all:
        raise OptionError(
            f"method {FITTING} counts on the entropy coder: --codec auto or rans, --partial none"
        )
    if shards:
        raise OptionError(f"method {FITTING} hits the size of one file: no --shard-size")
