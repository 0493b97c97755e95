"""Blocks of a GGUF tensor in the terms of the grouped scheme.

What is restored is what ggml dequantizes, to the bit: scale * code, or scale * code - minimum, in binary32, where scale
and minimum may be products of a block's step and a small integer.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spqfmt.codecs.elements import CARRIERS
from spqfmt.errors import UnsupportedError
from spqfmt.importers._gguf_reader import FORMS, GgufTensor
from spqfmt.kernels.ggml_blocks import put_together, take_apart
from spqfmt.kernels.ggml_types import BLOCK_TYPES, BlockType
from spqfmt.schemes.base import Encoded, Float32, StreamData
from spqfmt.schemes.floats import overflow_allowed, widen
from spqfmt.schemes.group_numbers import GroupValues
from spqfmt.schemes.grouped import Grouped

_Bytes = NDArray[np.uint8]
_BLOCKS = "blocks"


def block_type(tensor: GgufTensor) -> BlockType | None:
    """The type of the tensor's blocks; None where they are none, or of a kind that no scheme holds."""
    return BLOCK_TYPES.get(FORMS.get(tensor.ggml_type, ""))


def grouped_codes(tensor: GgufTensor, stored: _Bytes) -> Grouped:
    """The matrix whose blocks are `stored`: rows are all dimensions but the last."""
    kind = BLOCK_TYPES[FORMS[tensor.ggml_type]]
    rows, columns = prod(tensor.shape[:-1]), tensor.shape[-1]
    parts = take_apart(kind, stored.reshape(-1, kind.n_bytes))

    def of(role: str) -> NDArray[Any]:
        """Give the elements as the stream's carrier, a line for each row."""
        return parts[role].view(CARRIERS[kind.dtypes[role]]).reshape(rows, -1)

    def values(name: str, direct: str) -> GroupValues | None:
        if direct in parts:
            return GroupValues(of(direct), kind.dtypes[direct])
        codes = f"{name}_codes"
        if codes not in parts:
            return None
        return GroupValues(of(codes), kind.dtypes[codes], of(f"{name}_steps"))

    scale = values("scale", "scales")
    assert scale is not None
    return Grouped(
        codes=of("codes").reshape(rows, columns),
        code_dtype=kind.dtypes["codes"],
        group_size=kind.group_size,
        bits=kind.bits,
        scale=scale,
        minimum=values("minimum", "minimums"),
        supergroup=(1, kind.tile) if kind.tile else None,
        levels=None if kind.levels is None else np.array(kind.levels, np.float16),
        levels_dtype="f16",
    )


NO_NUMBERS = "scales that are NaN or infinite"
"""Why blocks have no values, where nothing is missing but sense."""


@dataclass(frozen=True)
class BlocksAsBytes:
    """The bytes of blocks that no scheme has codes for, under a named scheme; spec/origins/gguf.md says how."""

    tensor: GgufTensor
    stored: _Bytes
    why: str = ""
    """Why it has no codes; empty where its type has none, and values."""

    def encode(self) -> Encoded:
        """Give the stream: the first bytes of all blocks, then the second ones, and so on."""
        blocks = self.stored.reshape(-1, self.tensor.block_bytes)
        turned = np.ascontiguousarray(blocks.T).reshape(-1)
        stream = StreamData(_BLOCKS, "u8", turned, row_elements=len(blocks))
        name = self.tensor.form.lower().replace(" ", "-")
        return Encoded(f"ggml.{name}/1", {}, (stream,), why_no_codes=self.why)

    def dequantize(self) -> Float32:
        """Raise UnsupportedError: what they stand for ggml knows."""
        raise UnsupportedError(
            f"tensor {self.tensor.name!r}: no values of {self.tensor.form}", self.tensor.form
        )

    @staticmethod
    def made(tensor: GgufTensor) -> dict[str, object]:
        """Return how the stream becomes the blocks, in the terms of spec/origins/arrays.md."""
        dims = [tensor.block_bytes, tensor.n_bytes // tensor.block_bytes]
        return {"stream": _BLOCKS, "dims": dims, "axes": [1, 0]}


def is_whole(tensor: GgufTensor, codes: Grouped, stored: _Bytes) -> bool:
    """Whether the codes give the very blocks again."""
    kind = BLOCK_TYPES[FORMS[tensor.ggml_type]]
    n_blocks = stored.size // kind.n_bytes
    parts = {"codes": codes.codes}
    for name, direct, numbers in (("scale", "scales", codes.scale), ("minimum", "minimums", codes.minimum)):
        if numbers is not None and numbers.steps is None:
            parts[direct] = numbers.values
        elif numbers is not None and numbers.steps is not None:
            parts |= {f"{name}_codes": numbers.values, f"{name}_steps": numbers.steps}
    by_block = {
        role: elements.reshape(n_blocks, -1).view("<u2" if elements.dtype == np.float16 else elements.dtype)
        for role, elements in parts.items()
    }
    try:
        return np.array_equal(put_together(kind, by_block).reshape(-1), stored)
    except ValueError:
        return False


def has_numbers(codes: Grouped) -> bool:
    """Whether all of its scales and minimums are finite."""
    return all(
        np.isfinite(_largest_value(numbers))
        for numbers in (codes.scale, codes.minimum)
        if numbers is not None
    )


def stays_below(codes: Grouped, limit: float) -> bool:
    """Whether no value can pass the limit, by the largest of its factors; False where that does not tell."""
    # That of all codes of the type takes no look at them, and does for models that anybody has.
    above = [1 << codes.bits, None] if codes.levels is None else [np.abs(codes.levels).max()]
    with overflow_allowed():
        scale = _largest_value(codes.scale)
        minimum = 0.0 if codes.minimum is None else _largest_value(codes.minimum)
        return any(
            float(_largest(codes.codes) if most is None else most) * scale + minimum < limit for most in above
        )


def _largest_value(numbers: GroupValues) -> float:
    """At least the largest magnitude of a group's number; NaN where one is NaN."""
    if numbers.steps is None:
        return float(np.abs(widen(numbers.values, numbers.dtype)).max())
    steps = float(np.abs(widen(numbers.steps, numbers.steps_dtype)).max())
    return steps * _largest(numbers.values)


def _largest(codes: NDArray[Any]) -> int:
    return max(int(codes.max()), -int(codes.min()))
