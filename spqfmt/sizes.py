"""Sizes as a person writes them."""

import math
import re

from spqfmt.errors import OptionError
from spqfmt.wire import CHUNK_ALIGNMENT, LARGE_SEGMENT_ALIGNMENT

LARGE_FILE_BYTES = 16 << 20
"""The size from which segments are aligned to 4 KiB; below, the padding would cost more than direct reads are worth."""
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
# More digits may be more than a float holds.
_SIZE = re.compile(r"(\d{1,18}(?:\.\d+)?)\s*([KMG]?I?B?)", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes of a size such as 300MiB, 2GB or 4096. OptionError when it is none."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or match[2].upper() not in _UNITS:
        raise OptionError(f"{text!r} is not a size like 300MiB or 2GB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def n_bytes_of(size: int | float | str) -> int:
    """Bytes of a size in words or numbers. Raises OptionError for none, such as a float that is no number."""
    if isinstance(size, str):
        return parse_size(size)
    if not math.isfinite(size):
        raise OptionError(f"{size} is not a size; give a number of bytes, or one like 300MiB")
    return int(size)


def segment_alignment(raw_bytes: int, chunk_alignment: int = CHUNK_ALIGNMENT) -> int:
    """Where segments of a model whose tensors take so many bytes in the source begin, unless told otherwise."""
    return LARGE_SEGMENT_ALIGNMENT if raw_bytes >= LARGE_FILE_BYTES else chunk_alignment


def parse_shard_size(size: int | str | None) -> int | None:
    """Bytes of a shard at most; None for one file."""
    n_bytes = None if size is None else n_bytes_of(size)
    if n_bytes is not None and n_bytes < 1:
        raise OptionError("a shard size is at least 1 byte")
    return n_bytes


def parse_chunk_alignment(value: int | str | None) -> int | None:
    """Multiples at which chunks begin (FORMAT.md 2.3); None stays. Raises OptionError."""
    if value is not None and str(value) not in ("64", "4096"):
        raise OptionError(f"chunk alignment {value}: choose 64 or 4096")
    return None if value is None else int(value)


FOR_GPU = "gpu"
_GPU_BLOCK_LOG2 = 14
"""Blocks for devices: short enough that one of them takes no longer than the rest of a launch (docs/gpu.md)."""
_LEAST_BLOCK_LOG2, _LARGEST_BLOCK_LOG2 = 12, 16


def parse_block(value: int | str | None) -> int:
    """The exponent of 2 of a rans block's size, from 4 KiB to 64 KiB; 0 for None. Raises OptionError."""
    if value is None:
        return 0
    if value == FOR_GPU:
        return _GPU_BLOCK_LOG2
    n_bytes = n_bytes_of(value)
    log2 = n_bytes.bit_length() - 1
    if n_bytes < 1 or n_bytes != 1 << log2 or not _LEAST_BLOCK_LOG2 <= log2 <= _LARGEST_BLOCK_LOG2:
        raise OptionError(f"block {value}: choose 4KiB, 8KiB, 16KiB, 32KiB or 64KiB")
    return log2


_MOST_RANKS = 1024


def check_ranks(value: int | None) -> int | None:
    """How many processes share a model; None is not said. Raises OptionError."""
    if value is not None and not (type(value) is int and 1 <= value <= _MOST_RANKS):
        raise OptionError(f"ranks {value}: give a number of processes from 1 to {_MOST_RANKS}")
    return value
