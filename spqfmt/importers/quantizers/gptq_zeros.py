"""Zero points of GPTQ, which version 1 stores less one.

What it stores as the largest number stands for one more, as AutoGPTQ computes. GPTQModel takes the one off all numbers
of a word at once, where it is borrowed of the next number, and adds it so; of 3 bits it adds to each, modulo 8.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from spqfmt.codecs.elements import Elements
from spqfmt.errors import ImporterError
from spqfmt.importers.quantizers.gptq_config import GptqSettings
from spqfmt.importers.quantizers.packed_layers import StaysError
from spqfmt.importers.quantizers.words import code_dtype, unpacked
from spqfmt.schemes.group_numbers import GroupValues


@dataclass(frozen=True)
class Zeros:
    """The zero points, [rows, groups], and how their array is made of them."""

    read: Callable[[], GroupValues]
    part: Mapping[str, object]
    supergroup: tuple[int, int] | None = None


def zero_points(words: Callable[[], Elements], settings: GptqSettings, bits: int, name: str) -> Zeros:
    """The zero points that words [groups, n] hold, the tensor of this name.

    Reads them only where numbers may be carried or too large, or tell the version. Raises StaysError where no scheme
    has them so that the words come back, ImporterError for those of the other version by what is said of symmetry.
    """
    if settings.version and settings.is_symmetric:
        try:
            found = _version_of(_fields(words(), bits), bits)
        except StaysError:  # not symmetric: the points say themselves what they are
            found = settings.version
        if found != settings.version:
            raise ImporterError(
                f"tensor {name!r} has the zero points of version {found} where sym is true, but config.json says "
                f"version {settings.version} (checkpoint_format); download both again"
            )
    version = settings.version or _version_of(_fields(words(), bits), bits)
    if version == 2:
        return Zeros(lambda: GroupValues(_fields(words(), bits), code_dtype(bits)), {"stream": "zero_points"})
    plain = Zeros(lambda: _one_more(_fields(words(), bits), bits), {"stream": "zero_points", "add": -1})
    if bits == 3 and settings.carries:
        return replace(plain, read=lambda: GroupValues(_fields(words(), bits) + 1 & 7, code_dtype(bits)))
    if bits != 8 and not settings.carries:
        return plain
    fields, largest = _fields(words(), bits), (1 << bits) - 1
    if largest not in fields:
        return plain
    carried = _carried(words(), bits) if settings.carries else np.zeros_like(fields)
    if bits == 8 and carried.any():
        raise StaysError("zero points of 8 bits with a carry")
    return Zeros(
        lambda: _by_levels(fields, carried, bits, wraps=settings.carries),
        {"stream": "zero_point_codes"},
        supergroup=(fields.shape[0], fields.shape[1]),
    )


def _version_of(fields: Elements, bits: int) -> int:
    """The version that symmetric codes tell by their zero points. Raises StaysError for others."""
    middle = 1 << (bits - 1)
    if (fields == middle - 1).all():
        return 1
    if (fields == middle).all():
        return 2
    raise StaysError("zero points of a version that no config tells")


def _fields(words: Elements, bits: int) -> Elements:
    """The numbers as they are stored, [rows, groups]."""
    return np.ascontiguousarray(unpacked(words, bits).reshape(len(words), -1).T)


def _one_more(fields: Elements, bits: int) -> GroupValues:
    values = fields + np.uint8(1)
    return GroupValues(values, "u8" if values.max() >> bits else code_dtype(bits))


def _carried(words: Elements, bits: int) -> Elements:
    """Where the one that is added to each number of a word goes on to the next number."""
    unsigned = words.view(f"u{words.itemsize}")
    ones = unsigned.dtype.type(sum(1 << at for at in range(0, 8 * words.itemsize, bits)))
    with np.errstate(over="ignore"):
        together = unsigned + ones
    one_by_one = _fields(words, bits) + np.uint8(1)
    return (_fields(together, bits) - one_by_one) & np.uint8(1)


def _by_levels(fields: Elements, carried: Elements, bits: int, *, wraps: bool) -> GroupValues:
    """Codes that are the stored numbers, with the carry above them, and what each of these stands for."""
    dtype = "u4" if bits == 2 else "u8"
    codes = np.arange(1 << int(dtype[1:]))
    values = (codes & (1 << bits) - 1) + 1 + (codes >> bits)
    return GroupValues(
        fields | carried << bits if bits < 8 else fields,
        dtype,
        steps=np.ones((1, 1), np.float16),
        levels=(values & (1 << bits) - 1 if wraps else values).astype(np.float16),
        levels_dtype="f16",
    )
