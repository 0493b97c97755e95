"""The blocks of ggml, taken apart into codes and numbers of groups and put together again (spec/origins/gguf.md).

A type is a list of fields, and a field says which bits of its bytes are which bits of which elements. Elements are in
arrays by the role of their stream, [blocks, elements of a block]: codes as their carrier, numbers of 16 bits as
unsigned integers, so that no bit of them is lost. Bits of many bytes are moved at once, as words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Bytes: TypeAlias = NDArray[np.uint8]
Parts: TypeAlias = Mapping[str, NDArray[Any]]

_BLOCKS_AT_ONCE = 1 << 10
"""So many are turned while they lie in a core's cache."""
_NUMBERS = "numbers"
"""Codes of the second level: of scales, then of minimums."""
_LEVEL2 = ("scale_codes", "minimum_codes")


class _Place(NamedTuple):
    """Bits from `bit` on of a run's bytes: bits from `shift` on of the elements of a run from `first` on."""

    bit: int
    bits: int
    first: int
    shift: int


@dataclass(frozen=True)
class _Bits:
    """Bytes in runs of `size`, each of which holds bits of `span` elements of `role`."""

    role: str
    n_bytes: int
    size: int
    span: int
    places: tuple[_Place, ...]

    def take(self, data: Bytes, elements: NDArray[Any]) -> None:
        """Add what the bytes [blocks, n_bytes] say of the elements, uint8 [blocks, elements]."""
        words, runs = self._words(np.ascontiguousarray(data), self.size), self._words(elements, self.span)
        for place in self.places:
            found = words >> self._word(place.bit) & self._mask(place.bits)
            self._of(runs, place)[...] |= found << self._word(place.shift) if place.shift else found

    def put(self, elements: NDArray[Any]) -> Bytes:
        """The bytes of these elements."""
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

    def _of(self, runs: NDArray[Any], place: _Place) -> NDArray[Any]:
        at = place.first // self._width
        return runs[:, :, at : at + self.size // self._width]

    def _word(self, value: int) -> Any:
        return self._dtype.type(value)

    def _mask(self, bits: int) -> Any:
        return self._word(int.from_bytes(bytes([(1 << bits) - 1] * self._width), "little"))


@dataclass(frozen=True)
class _Number:
    """One element as it is, `turned` with the highest of its 16 bits the other way."""

    role: str
    n_bytes: int = 2
    turned: int = 0

    def take(self, data: Bytes, elements: NDArray[Any]) -> None:
        elements[...] = np.ascontiguousarray(data).view(elements.dtype) ^ elements.dtype.type(self.turned)

    def put(self, elements: NDArray[Any]) -> Bytes:
        found: Bytes = (elements ^ elements.dtype.type(self.turned)).view(np.uint8)
        return found


@dataclass(frozen=True)
class _Trits:
    """Each byte is a fraction of 256 whose digits, to the base 3, are elements `n_bytes` apart from `first` on."""

    role: str
    n_bytes: int
    first: int
    n_codes: int

    def take(self, data: Bytes, elements: NDArray[Any]) -> None:
        for k in range(self.n_codes):
            digit = (data * np.uint8(3**k)).astype(np.uint16) * np.uint16(3) >> np.uint16(8)
            elements[:, self._at(k)] = digit

    def put(self, elements: NDArray[Any]) -> Bytes:
        n = np.zeros((len(elements), self.n_bytes), np.uint16)
        for k in range(self.n_codes):
            n += elements[:, self._at(k)] * np.uint16(3 ** (4 - k))
        return ((n.astype(np.uint32) * 256 + 242) // 243).astype(np.uint8)

    def _at(self, k: int) -> slice:
        return slice(self.first + k * self.n_bytes, self.first + (k + 1) * self.n_bytes)


_Field: TypeAlias = _Bits | _Number | _Trits


def _even(role: str, n_bytes: int, size: int, bits: int, shift: int = 0) -> _Bits:
    """Each run of bytes holds 8 / bits runs of elements, the first in its lowest bits."""
    n = 8 // bits
    return _Bits(
        role, n_bytes, size, size * n, tuple(_Place(bits * k, bits, size * k, shift) for k in range(n))
    )


def _mixed(*places: _Place) -> _Bits:
    """Four bytes of second-level codes of 6 bits, eight scales and eight minimums."""
    return _Bits(_NUMBERS, 4, 4, 16, places)


@dataclass(frozen=True)
class BlockType:
    """A line of the tables of spec/origins/gguf.md. `tile`: groups of a supergroup, 0 without one."""

    name: str
    n_elements: int
    group_size: int
    bits: int
    dtypes: Mapping[str, str]
    """By role, but for levels."""
    fields: tuple[_Field, ...]
    offset: int = 0
    n_codes: int = 0
    """Codes plus the offset are below it; 0 where their dtype says so. An i2 has no room for TQ2_0's fourth."""
    levels: tuple[float, ...] | None = None
    tile: int = 0
    number_bits: int = 0
    """Of a code of the second level; 0 where its dtype says so."""

    @property
    def n_bytes(self) -> int:
        """Of a block."""
        return sum(field.n_bytes for field in self.fields)

    @property
    def number_offset(self) -> int:
        """What is added to a code of the second level in its place."""
        return 32 if self.number_bits and self.dtypes["scale_codes"] == "i8" else 0

    def n_of(self, role: str) -> int:
        """Elements of a block."""
        return self.n_elements if role == "codes" else self.tile if role in _LEVEL2 else 1

    def placed(self) -> Iterator[tuple[_Field, slice]]:
        """The fields and where they lie in a block."""
        at = 0
        for field in self.fields:
            yield field, slice(at, at + field.n_bytes)
            at += field.n_bytes


def take_apart(kind: BlockType, blocks: Bytes) -> dict[str, NDArray[Any]]:
    """The elements of `blocks`, uint8 [blocks, bytes of a block]."""
    n = len(blocks)
    level2 = [role for role in _LEVEL2 if role in kind.dtypes]
    found: dict[str, NDArray[Any]] = {
        role: np.empty((n, 1), np.uint8 if dtype.startswith("f8") else "<u2")
        for role, dtype in kind.dtypes.items()
        if role != "codes" and role not in level2
    }
    found["codes"] = np.zeros((n, kind.n_elements), np.uint8)
    if level2:
        found[_NUMBERS] = np.zeros((n, kind.tile * len(level2)), np.uint8)
    for first in range(0, n, _BLOCKS_AT_ONCE):
        some = slice(first, first + _BLOCKS_AT_ONCE)
        for field, at in kind.placed():
            field.take(blocks[some, at], found[field.role][some])
        if kind.offset:
            found["codes"][some] -= np.uint8(kind.offset)
    if kind.dtypes["codes"].startswith("i"):
        found["codes"] = found["codes"].view(np.int8)
    for number, role in enumerate(level2):
        codes = found[_NUMBERS][:, number * kind.tile : (number + 1) * kind.tile] - np.uint8(
            kind.number_offset
        )
        found[role] = codes.view(np.int8) if kind.dtypes[role].startswith("i") else codes
    found.pop(_NUMBERS, None)
    return found


def put_together(kind: BlockType, parts: Parts) -> Bytes:
    """The blocks of these elements, uint8 [blocks, bytes of a block]. Raises ValueError for one past its place."""
    n = len(parts["codes"])
    given = dict(parts)
    level2 = [parts[role].view(np.uint8) for role in _LEVEL2 if role in parts]
    if level2:
        numbers = np.concatenate(level2, axis=1) + np.uint8(kind.number_offset)
        if kind.number_bits and n and numbers.max() >> kind.number_bits:
            raise ValueError(f"a scale past {kind.name}")
        given[_NUMBERS] = numbers
    blocks = np.empty((n, kind.n_bytes), np.uint8)
    for first in range(0, n, _BLOCKS_AT_ONCE):
        some = slice(first, first + _BLOCKS_AT_ONCE)
        codes = given["codes"][some].view(np.uint8) + np.uint8(kind.offset)
        if kind.n_codes and codes.max() >= kind.n_codes:
            raise ValueError(f"a code past {kind.name}")
        for field, at in kind.placed():
            blocks[some, at] = field.put(codes if field.role == "codes" else given[field.role][some])
    return blocks


_F16 = {"scales": "f16"}
_BOTH = {"scales": "f16", "minimums": "f16"}
_STEPS = {"scale_codes": "i8", "scale_steps": "f16"}
_K_STEPS = {"scale_codes": "u8", "scale_steps": "f16", "minimum_codes": "u8", "minimum_steps": "f16"}
_K2_STEPS = {**_K_STEPS, "scale_codes": "u4", "minimum_codes": "u4"}
_SCALE, _STEP = _Number("scales"), _Number("scale_steps")
_MINUS_MINIMUM, _MINIMUM_STEP = _Number("minimums", turned=0x8000), _Number("minimum_steps")
_HALVES, _FIFTHS = _even("codes", 16, 16, 4), _even("codes", 4, 1, 1, shift=4)
_PAIRS, _K_HALVES = _even("codes", 64, 32, 2), _even("codes", 128, 32, 4)
_BY_8 = (
    _mixed(_Place(0, 6, 0, 0), _Place(6, 2, 4, 4)),
    _mixed(_Place(0, 6, 8, 0), _Place(6, 2, 12, 4)),
    _mixed(_Place(0, 4, 4, 0), _Place(4, 4, 12, 0)),
)
_IQ4 = tuple(map(float, (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)))
# ggml's table is one of integers, so the code of -0 stands for 0.
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)

BLOCK_TYPES: Mapping[str, BlockType] = {
    kind.name: kind
    for kind in (
        BlockType("Q4_0", 32, 32, 4, {"codes": "i4", **_F16}, (_SCALE, _HALVES), offset=8),
        BlockType("Q4_1", 32, 32, 4, {"codes": "u4", **_BOTH}, (_SCALE, _MINUS_MINIMUM, _HALVES)),
        BlockType("Q5_0", 32, 32, 5, {"codes": "i8", **_F16}, (_SCALE, _FIFTHS, _HALVES), offset=16, n_codes=32),
        BlockType("Q5_1", 32, 32, 5, {"codes": "u8", **_BOTH}, (_SCALE, _MINUS_MINIMUM, _FIFTHS, _HALVES), n_codes=32),
        BlockType("Q8_0", 32, 32, 8, {"codes": "i8", **_F16}, (_SCALE, _even("codes", 32, 32, 8))),
        BlockType("IQ4_NL", 32, 32, 4, {"codes": "u4", **_F16}, (_SCALE, _HALVES), levels=_IQ4),
        BlockType("MXFP4", 32, 32, 4, {"codes": "u4", "scales": "f8_e8m0"}, (_Number("scales", 1), _HALVES),
                  levels=_E2M1),
        BlockType("Q2_K", 256, 16, 2, {"codes": "u2", **_K2_STEPS},
                  (_even(_NUMBERS, 16, 16, 4), _PAIRS, _STEP, _MINIMUM_STEP), tile=16),
        BlockType("Q3_K", 256, 16, 3, {"codes": "i4", **_STEPS},
                  (_even("codes", 32, 32, 1, shift=2), _PAIRS, _even(_NUMBERS, 8, 8, 4),
                   _even(_NUMBERS, 4, 4, 2, shift=4), _STEP), offset=4, n_codes=8, tile=16, number_bits=6),
        BlockType("Q4_K", 256, 32, 4, {"codes": "u4", **_K_STEPS}, (_STEP, _MINIMUM_STEP, *_BY_8, _K_HALVES), tile=8,
                  number_bits=6),
        BlockType("Q5_K", 256, 32, 5, {"codes": "u8", **_K_STEPS},
                  (_STEP, _MINIMUM_STEP, *_BY_8, _even("codes", 32, 32, 1, shift=4), _K_HALVES), n_codes=32, tile=8,
                  number_bits=6),
        BlockType("Q6_K", 256, 16, 6, {"codes": "i8", **_STEPS},
                  (_even("codes", 128, 64, 4), _even("codes", 64, 32, 2, shift=4), _even(_NUMBERS, 16, 16, 8), _STEP),
                  offset=32, n_codes=64, tile=16),
        BlockType("IQ4_XS", 256, 32, 4, {"codes": "u4", **_STEPS},
                  (_STEP, _even(_NUMBERS, 2, 1, 2, shift=4), _even(_NUMBERS, 4, 1, 4), _even("codes", 128, 16, 4)),
                  levels=_IQ4, tile=8, number_bits=6),
        BlockType("TQ1_0", 256, 256, 2, {"codes": "i2", **_F16},
                  (_Trits("codes", 32, 0, 5), _Trits("codes", 16, 160, 5), _Trits("codes", 4, 240, 4), _SCALE),
                  offset=1, n_codes=3),
        BlockType("TQ2_0", 256, 256, 2, {"codes": "i2", **_F16}, (_PAIRS, _SCALE), offset=1, n_codes=3),
    )
}  # fmt: skip
"""By ggml's names."""
