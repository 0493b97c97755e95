"""The blocks of ggml, taken apart into codes and numbers of groups and put together again (spec/origins/gguf.md).

Elements are in arrays by the role of their stream, [blocks, elements of a block]: codes as their carrier, numbers of 16
bits as unsigned integers, so that no bit of them is lost.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from spqfmt.kernels.ggml_fields import NUMBERS, Bytes
from spqfmt.kernels.ggml_types import LEVEL2, BlockType
from spqfmt.wire import DTYPES

Parts: TypeAlias = Mapping[str, NDArray[Any]]

_BLOCKS_AT_ONCE = 1 << 11
"""So many are turned while they lie in a core's cache."""


def take_apart(kind: BlockType, blocks: Bytes) -> dict[str, NDArray[Any]]:
    """The elements of `blocks`, uint8 [blocks, bytes of a block]."""
    blocks = np.ascontiguousarray(blocks)
    n = len(blocks)
    level2 = [role for role in LEVEL2 if role in kind.dtypes]
    found: dict[str, NDArray[Any]] = {
        role: np.empty((n, 1), np.uint8 if dtype.startswith("f8") else "<u2")
        for role, dtype in kind.dtypes.items()
        if role != "codes" and role not in level2
    }
    found["codes"] = np.zeros((n, kind.n_elements), np.uint8)
    if level2:
        found[NUMBERS] = np.zeros((n, kind.tile * len(level2)), np.uint8)
    for first in range(0, n, _BLOCKS_AT_ONCE):
        some = slice(first, first + _BLOCKS_AT_ONCE)
        for field, at in kind.placed():
            field.take(blocks[some], at, found[field.role][some])
        if kind.offset:
            found["codes"][some] -= np.uint8(kind.offset)
    if kind.dtypes["codes"].startswith("i"):
        found["codes"] = found["codes"].view(np.int8)
    for number, role in enumerate(level2):
        codes = found[NUMBERS][:, number * kind.tile : (number + 1) * kind.tile] - np.uint8(
            kind.number_offset
        )
        found[role] = codes.view(np.int8) if kind.dtypes[role].startswith("i") else codes
    found.pop(NUMBERS, None)
    return found


def put_together(kind: BlockType, parts: Parts) -> Bytes:
    """The blocks of these elements, uint8 [blocks, bytes of a block]. Raises ValueError for one past its place.

    Codes of 2 and 4 bits may be the bits alone, without a sign.
    """
    n = len(parts["codes"])
    given = dict(parts)
    level2 = [parts[role].view(np.uint8) for role in LEVEL2 if role in parts]
    if level2:
        numbers = np.concatenate(level2, axis=1) + np.uint8(kind.number_offset)
        if kind.number_bits and n and numbers.max() >> kind.number_bits:
            raise ValueError(f"a scale past {kind.name}")
        given[NUMBERS] = numbers
    blocks = np.empty((n, kind.n_bytes), np.uint8)
    mask = np.uint8((1 << DTYPES[kind.dtypes["codes"]].bits) - 1)
    for first in range(0, n, _BLOCKS_AT_ONCE):
        some = slice(first, first + _BLOCKS_AT_ONCE)
        codes = given["codes"][some].view(np.uint8) + np.uint8(kind.offset) & mask
        if kind.n_codes and codes.max() >= kind.n_codes:
            raise ValueError(f"a code past {kind.name}")
        for field, at in kind.placed():
            field.put(codes if field.role == "codes" else given[field.role][some], blocks[some], at)
    return blocks
