"""The fields of ggml's blocks: which bits of some bytes are which bits of which elements (spec/origins/gguf.md).

Bits of many bytes are moved at once, as words.
"""

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

    def take(self, data: Bytes, elements: NDArray[Any]) -> None:
        """Add what the bytes [blocks, n_bytes] say of the elements, uint8 [blocks, elements]."""
        words, runs = self._words(np.ascontiguousarray(data), self.size), self._words(elements, self.span)
        for place in self.places:
            found = words >> self._word(place.bit) & self._mask(place.bits)
            self._of(runs, place)[...] |= found << self._word(place.shift) if place.shift else found

    def put(self, elements: NDArray[Any]) -> Bytes:
        """Give the bytes of these elements."""
        runs = self._words(np.ascontiguousarray(elements), self.span)
        words = np.zeros((len(elements), self.n_bytes // self.size, self.size // self._width), self._dtype)
        for place in self.places:
            found = self._of(runs, place) >> self._word(place.shift) & self._mask(place.bits)
            words |= found << self._word(place.bit) if place.bit else found
        return words.view(np.uint8).reshape(len(elements), -1)

    @property
    def _width(self) -> int:
        return next(width for width in (8, 4, 2, 1) if self.size % width == 0)

    @property
    def _dtype(self) -> np.dtype[Any]:
        return np.dtype(f"<u{self._width}")

    def _words(self, data: NDArray[Any], run: int) -> NDArray[Any]:
        """[blocks, bytes], contiguous, as words [blocks, runs, words of a run]."""
        n_runs = self.n_bytes // self.size
        return data.view(self._dtype).reshape(len(data), n_runs, run // self._width)

    def _of(self, runs: NDArray[Any], place: BitPlace) -> NDArray[Any]:
        at = place.first // self._width
        return runs[:, :, at : at + self.size // self._width]

    def _word(self, value: int) -> Any:
        return self._dtype.type(value)

    def _mask(self, bits: int) -> Any:
        return self._word(int.from_bytes(bytes([(1 << bits) - 1] * self._width), "little"))


@dataclass(frozen=True)
class NumberField:
    """One element as it is, `turned` with the highest of its 16 bits the other way."""

    role: str
    n_bytes: int = 2
    turned: int = 0

    def take(self, data: Bytes, elements: NDArray[Any]) -> None:
        """Set the elements, as `BitField.take` does."""
        elements[...] = np.ascontiguousarray(data).view(elements.dtype) ^ elements.dtype.type(self.turned)

    def put(self, elements: NDArray[Any]) -> Bytes:
        """Give the bytes of these elements."""
        found: Bytes = (elements ^ elements.dtype.type(self.turned)).view(np.uint8)
        return found


@dataclass(frozen=True)
class TritField:
    """Each byte is a fraction of 256 whose digits, to the base 3, are elements `n_bytes` apart from `first` on."""

    role: str
    n_bytes: int
    first: int
    n_codes: int

    def take(self, data: Bytes, elements: NDArray[Any]) -> None:
        """Set the elements, as `BitField.take` does."""
        for k in range(self.n_codes):
            digit = (data * np.uint8(3**k)).astype(np.uint16) * np.uint16(3) >> np.uint16(8)
            elements[:, self._at(k)] = digit

    def put(self, elements: NDArray[Any]) -> Bytes:
        """Give the bytes of these elements."""
        n = np.zeros((len(elements), self.n_bytes), np.uint16)
        for k in range(self.n_codes):
            n += elements[:, self._at(k)] * np.uint16(3 ** (4 - k))
        return ((n.astype(np.uint32) * 256 + 242) // 243).astype(np.uint8)

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
