"""The fields of ggml's blocks: which bits of some bytes are which bits of which elements (spec/origins/gguf.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Bytes: TypeAlias = NDArray[np.uint8]
NUMBERS = "numbers"
"""The role of codes of the second level: of scales, then of minimums."""


class BitPlace(NamedTuple):
    """Bits from `bit` on of a run's bytes: bits from `shift` on of the elements of a run from `first` on."""

    bit: int
    bits: int
    first: int
    shift: int


@dataclass(frozen=True)
class BitField:
    """Bytes in runs of `size`, each of which holds bits of `span` elements of `role`."""

    role: str
    n_bytes: int
    size: int
    span: int
    places: tuple[BitPlace, ...]

    def numbers(self, role: int, at: int) -> list[int]:
        """The field from byte `at` of a block on as `native.take_blocks` takes it, its role by number."""
        places = [number for place in self.places for number in place]
        return [role, at, self.n_bytes // self.size, self.size, self.span, len(self.places), *places]


@dataclass(frozen=True)
class NumberField:
    """One element as it is, `turned` with the highest of its 16 bits the other way."""

    role: str
    n_bytes: int = 2
    turned: int = 0

    def numbers(self, role: int, at: int) -> list[int]:
        """The element's bytes from byte `at` of a block on, as `BitField.numbers` gives them, not turned."""
        return [role, at, 1, self.n_bytes, self.n_bytes, 1, 0, 8, 0, 0]


@dataclass(frozen=True)
class TritField:
    """Each byte is a fraction of 256 whose digits, to the base 3, are elements `n_bytes` apart from `first` on."""

    role: str
    n_bytes: int
    first: int
    n_codes: int

    def take(self, blocks: Bytes, at: int, elements: NDArray[Any], offset: int) -> None:
        """Set the elements to what the bytes from `at` on of `blocks` say, less the offset; a row for each block."""
        data = blocks[:, at : at + self.n_bytes]
        for k in range(self.n_codes):
            digit = (data * np.uint8(3**k)).astype(np.uint16) * np.uint16(3) >> np.uint16(8)
            elements[:, self._at(k)] = digit.astype(np.uint8) - np.uint8(offset)

    def put(self, elements: NDArray[Any], blocks: Bytes, at: int) -> None:
        """Set the bytes from `at` on of `blocks` to what the elements say."""
        n = np.zeros((len(elements), self.n_bytes), np.uint16)
        for k in range(self.n_codes):
            n += elements[:, self._at(k)] * np.uint16(3 ** (4 - k))
        blocks[:, at : at + self.n_bytes] = (n.astype(np.uint32) * 256 + 242) // 243

    def _at(self, k: int) -> slice:
        return slice(self.first + k * self.n_bytes, self.first + (k + 1) * self.n_bytes)


Field: TypeAlias = BitField | NumberField | TritField


def even(role: str, n_bytes: int, size: int, bits: int, shift: int = 0) -> BitField:
    """Each run of bytes holds 8 / bits runs of elements, the first in its lowest bits."""
    n = 8 // bits
    places = tuple(BitPlace(bits * k, bits, size * k, shift) for k in range(n))
    return BitField(role=role, n_bytes=n_bytes, size=size, span=size * n, places=places)


def mixed(*places: BitPlace) -> BitField:
    """Four bytes of second-level codes of 6 bits, eight scales and eight minimums."""
    return BitField(role=NUMBERS, n_bytes=4, size=4, span=16, places=places)
