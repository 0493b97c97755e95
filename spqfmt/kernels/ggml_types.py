"""The types of ggml's blocks by name: their streams and fields, as the tables of spec/origins/gguf.md have them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from spqfmt.cached import cached_property
from spqfmt.kernels.ggml_fields import NUMBERS, BitPlace, Field, NumberField, TritField, even, mixed
from spqfmt.wire import DTYPES

LEVEL2 = ("scale_codes", "minimum_codes")
"""Roles of codes of the second level."""


@dataclass(frozen=True)
class BlockType:
    """A line of the tables of spec/origins/gguf.md. `tile`: groups of a supergroup, 0 without one."""

    name: str
    n_elements: int
    group_size: int
    bits: int
    dtypes: Mapping[str, str]
    """Dtypes of the streams by role, but for levels."""
    fields: tuple[Field, ...]
    offset: int = 0
    n_codes: int = 0
    """Codes plus the offset are below it; 0 where their dtype says so. An i2 has no room for TQ2_0's fourth."""
    levels: tuple[float, ...] | None = None
    tile: int = 0
    number_bits: int = 0
    """Bits of a code of the second level; 0 where its dtype says so."""

    @property
    def n_bytes(self) -> int:
        """The length of a block."""
        return sum(field.n_bytes for field in self.fields)

    @property
    def takes_all_bytes(self) -> bool:
        """Whether any bytes are a block; in those of TQ there is room for codes that do not exist."""
        return not self.name.startswith("TQ")

    @property
    def number_offset(self) -> int:
        """What is added to a code of the second level in its place."""
        return 32 if self.number_bits and self.dtypes["scale_codes"] == "i8" else 0

    @cached_property
    def level2(self) -> tuple[str, ...]:
        """Roles of its codes of the second level, which are one run of numbers in a block."""
        return tuple(role for role in LEVEL2 if role in self.dtypes)

    @cached_property
    def roles(self) -> tuple[str, ...]:
        """All roles, in the order in which `layout` has their elements."""
        first = ("codes", *self.level2)
        return (*first, *(role for role in self.dtypes if role not in first))

    @cached_property
    def layout(self) -> NDArray[np.int64]:
        """Its fields as `native.take_blocks` takes them, but for trits."""
        mask = (1 << DTYPES[self.dtypes["codes"]].bits) - 1
        roles = {"codes": (self.n_elements, 1, self.offset, mask, self.n_codes)}
        if self.level2:
            n, limit = len(self.level2), 1 << self.number_bits if self.number_bits else 0
            roles[NUMBERS] = (n * self.tile, n, self.number_offset, 255, limit)
        numbers = [(field, at) for field, at in self.placed() if not isinstance(field, TritField)]
        sizes = {field.role: field.n_bytes for field, _ in numbers if isinstance(field, NumberField)}
        roles |= {role: (sizes[role], 1, 0, 255, 0) for role in self.roles if role in sizes}
        order = list(roles)
        fields = [number for field, at in numbers for number in field.numbers(order.index(field.role), at)]
        return np.array([self.n_bytes, len(roles), *chain(*roles.values()), *fields], np.int64)

    def placed(self) -> Iterator[tuple[Field, int]]:
        """The fields and where they begin in a block."""
        at = 0
        for field in self.fields:
            yield field, at
            at += field.n_bytes


_F16 = {"scales": "f16"}
_BOTH = {"scales": "f16", "minimums": "f16"}
_STEPS = {"scale_codes": "i8", "scale_steps": "f16"}
_K_STEPS = {"scale_codes": "u8", "scale_steps": "f16", "minimum_codes": "u8", "minimum_steps": "f16"}
_K2_STEPS = {**_K_STEPS, "scale_codes": "u4", "minimum_codes": "u4"}
_SCALE, _STEP = NumberField("scales"), NumberField("scale_steps")
_MINUS_MINIMUM, _MINIMUM_STEP = NumberField("minimums", turned=0x8000), NumberField("minimum_steps")
_HALVES, _FIFTHS = even("codes", 16, 16, 4), even("codes", 4, 1, 1, shift=4)
_PAIRS, _K_HALVES = even("codes", 64, 32, 2), even("codes", 128, 32, 4)
_BY_8 = (
    mixed(BitPlace(0, 6, 0, 0), BitPlace(6, 2, 4, 4)),
    mixed(BitPlace(0, 6, 8, 0), BitPlace(6, 2, 12, 4)),
    mixed(BitPlace(0, 4, 4, 0), BitPlace(4, 4, 12, 0)),
)
_IQ4 = tuple(map(float, (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)))
# ggml's table is one of integers, so the code of -0 stands for 0.
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
_I4, _U4, _I8, _U8, _I2 = ({"codes": dtype} for dtype in ("i4", "u4", "i8", "u8", "i2"))

_Q4_0 = BlockType("Q4_0", 32, 32, 4, dtypes=_I4 | _F16, fields=(_SCALE, _HALVES), offset=8)
_Q4_1 = BlockType("Q4_1", 32, 32, 4, dtypes=_U4 | _BOTH, fields=(_SCALE, _MINUS_MINIMUM, _HALVES))
_Q5_0 = BlockType(
    "Q5_0", 32, 32, 5, dtypes=_I8 | _F16, fields=(_SCALE, _FIFTHS, _HALVES), offset=16, n_codes=32
)
_Q5_1_FIELDS = (_SCALE, _MINUS_MINIMUM, _FIFTHS, _HALVES)
_Q5_1 = BlockType("Q5_1", 32, 32, 5, dtypes=_U8 | _BOTH, fields=_Q5_1_FIELDS, n_codes=32)
_Q8_0 = BlockType("Q8_0", 32, 32, 8, dtypes=_I8 | _F16, fields=(_SCALE, even("codes", 32, 32, 8)))
_IQ4_NL = BlockType("IQ4_NL", 32, 32, 4, dtypes=_U4 | _F16, fields=(_SCALE, _HALVES), levels=_IQ4)
_MXFP4_FIELDS = (NumberField("scales", 1), _HALVES)
_MXFP4 = BlockType("MXFP4", 32, 32, 4, dtypes=_U4 | {"scales": "f8_e8m0"}, fields=_MXFP4_FIELDS, levels=_E2M1)
_Q2_K_FIELDS = (even(NUMBERS, 16, 16, 4), _PAIRS, _STEP, _MINIMUM_STEP)
_Q2_K = BlockType("Q2_K", 256, 16, 2, dtypes={"codes": "u2", **_K2_STEPS}, fields=_Q2_K_FIELDS, tile=16)
_Q3_K = BlockType(
    "Q3_K", 256, 16, 3,
    dtypes=_I4 | _STEPS,
    fields=(
        even("codes", 32, 32, 1, shift=2),
        _PAIRS,
        even(NUMBERS, 8, 8, 4),
        even(NUMBERS, 4, 4, 2, shift=4),
        _STEP,
    ),
    offset=4,
    n_codes=8,
    tile=16,
    number_bits=6,
)  # fmt: skip
_Q4_K_FIELDS = (_STEP, _MINIMUM_STEP, *_BY_8, _K_HALVES)
_Q4_K = BlockType("Q4_K", 256, 32, 4, dtypes=_U4 | _K_STEPS, fields=_Q4_K_FIELDS, tile=8, number_bits=6)
_Q5_K = BlockType(
    "Q5_K", 256, 32, 5,
    dtypes=_U8 | _K_STEPS,
    fields=(_STEP, _MINIMUM_STEP, *_BY_8, even("codes", 32, 32, 1, shift=4), _K_HALVES),
    n_codes=32,
    tile=8,
    number_bits=6,
)  # fmt: skip
_Q6_K = BlockType(
    "Q6_K", 256, 16, 6,
    dtypes=_I8 | _STEPS,
    fields=(even("codes", 128, 64, 4), even("codes", 64, 32, 2, shift=4), even(NUMBERS, 16, 16, 8), _STEP),
    offset=32,
    n_codes=64,
    tile=16,
)  # fmt: skip
_IQ4_XS = BlockType(
    "IQ4_XS", 256, 32, 4,
    dtypes=_U4 | _STEPS,
    fields=(_STEP, even(NUMBERS, 2, 1, 2, shift=4), even(NUMBERS, 4, 1, 4), even("codes", 128, 16, 4)),
    levels=_IQ4,
    tile=8,
    number_bits=6,
)  # fmt: skip
_TRITS = (TritField("codes", 32, 0, 5), TritField("codes", 16, 160, 5), TritField("codes", 4, 240, 4))
_TQ1_0 = BlockType("TQ1_0", 256, 256, 2, dtypes=_I2 | _F16, fields=(*_TRITS, _SCALE), offset=1, n_codes=3)
_TQ2_0 = BlockType("TQ2_0", 256, 256, 2, dtypes=_I2 | _F16, fields=(_PAIRS, _SCALE), offset=1, n_codes=3)

BLOCK_TYPES: Mapping[str, BlockType] = {
    kind.name: kind
    for kind in (
        _Q4_0, _Q4_1, _Q5_0, _Q5_1, _Q8_0, _IQ4_NL, _MXFP4, _Q2_K, _Q3_K, _Q4_K, _Q5_K, _Q6_K, _IQ4_XS, _TQ1_0, _TQ2_0,
    )
}  # fmt: skip
"""The types by ggml's names."""
