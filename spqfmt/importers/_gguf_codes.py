"""Blocks of a GGUF tensor as codes of the grouped scheme: 32 columns with a float16 scale, and perhaps an offset.

What is restored is what ggml dequantizes: scale * code, or scale * code - minimum where the offset is minus the
minimum, in binary32.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spqfmt.codecs.elements import Elements
from spqfmt.importers._gguf_reader import GgufTensor
from spqfmt.schemes.group_numbers import GroupValues
from spqfmt.schemes.grouped import Grouped

_COLUMNS = 32
_Bytes = NDArray[np.uint8]
# ggml type -> bits of a code, whether a block has an offset
_KINDS = {2: (4, False), 3: (4, True), 6: (5, False), 7: (5, True), 8: (8, False)}


def holds(tensor: GgufTensor) -> bool:
    """Whether `grouped_codes` knows the blocks of this tensor."""
    return tensor.ggml_type in _KINDS and len(tensor.shape) == 2


def grouped_codes(tensor: GgufTensor, stored: _Bytes) -> Grouped:
    """A matrix [rows, columns] whose blocks are `stored`."""
    bits, has_offset = _KINDS[tensor.ggml_type]
    rows, columns = tensor.shape
    blocks = stored.reshape(rows, columns // _COLUMNS, -1)
    scale, rest = _float16(blocks[:, :, :2]), blocks[:, :, 2:]
    minimum = None
    if has_offset:
        minimum = GroupValues(-_float16(rest[:, :, :2]), "f16")
        rest = rest[:, :, 2:]
    unsigned = _codes(rest, bits).reshape(rows, columns)
    # Without an offset those of 8 bits are signed already; others count from the middle.
    codes: Elements = unsigned if has_offset else unsigned.view(np.int8) - np.int8((1 << (bits - 1)) & 127)
    dtype = f"{'u' if has_offset else 'i'}{4 if bits == 4 else 8}"
    return Grouped(
        codes=codes,
        code_dtype=dtype,
        group_size=_COLUMNS,
        bits=bits,
        scale=GroupValues(scale, "f16"),
        minimum=minimum,
    )


def _float16(stored: _Bytes) -> NDArray[np.float16]:
    return np.ascontiguousarray(stored).view("<f2")[:, :, 0]


def _codes(blocks: _Bytes, bits: int) -> _Bytes:
    """[rows, blocks, 32], unsigned: first the low halves of bytes, then the high ones; fifth bits lie before them."""
    if bits == 8:
        return np.ascontiguousarray(blocks)
    low = blocks[:, :, 4:] if bits == 5 else blocks
    codes = np.concatenate([low & 15, low >> 4], axis=2)
    if bits == 5:
        codes |= np.unpackbits(blocks[:, :, :4], axis=2, bitorder="little") << 4
    return codes


def in_rows(matrix: Grouped, rows: NDArray[Any]) -> Grouped:
    """Row `rows[i]` as row i."""
    scale, minimum = (
        None if part is None else replace(part, values=part.values[rows])
        for part in (matrix.scale, matrix.minimum)
    )
    assert scale is not None
    return replace(matrix, codes=matrix.codes[rows], scale=scale, minimum=minimum)
