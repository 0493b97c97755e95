"""The blocks of ggml, taken apart into codes and numbers of groups and put together again (spec/origins/gguf.md).

Elements are in arrays by the role of their stream, [blocks, elements of a block]: codes as their carrier, numbers of 16
bits as unsigned integers, so that no bit of them is lost.
"""

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from spqfmt.kernels import native
from spqfmt.kernels.ggml_fields import Bytes, NumberField, TritField
from spqfmt.kernels.ggml_types import BlockType
from spqfmt.wire import DTYPES

Parts: TypeAlias = Mapping[str, NDArray[Any]]

_BLOCKS_AT_ONCE = 1 << 11
"""So many are turned while they lie in a core's cache."""


def take_apart(kind: BlockType, blocks: Bytes) -> dict[str, NDArray[Any]]:
    """The elements of `blocks`, uint8 [blocks, bytes of a block]."""
    blocks = np.ascontiguousarray(blocks)
    sizes = {"codes": kind.n_elements, **dict.fromkeys(kind.level2, kind.tile)}
    found: dict[str, NDArray[Any]] = {
        role: np.empty((len(blocks), sizes.get(role, 1)), _carrier(kind, role)) for role in kind.roles
    }
    native.take_blocks(kind.layout, blocks, list(found.values()))
    for some in _runs(kind, len(blocks)):
        codes = found["codes"][some].view(np.uint8)
        for field, at in kind.placed():
            if isinstance(field, TritField):
                field.take(blocks[some], at, codes, kind.offset)
    for role, turned in _turned(kind):
        found[role] ^= turned
    return found


def put_together(kind: BlockType, parts: Parts) -> Bytes:
    """The blocks of these elements, uint8 [blocks, bytes of a block]. Raises ValueError for one past its place.

    Codes of 2 and 4 bits may be the bits alone, without a sign.
    """
    given = {role: np.ascontiguousarray(parts[role]) for role in kind.roles}
    for role, turned in _turned(kind):
        given[role] = given[role] ^ turned
    blocks = np.empty((len(given["codes"]), kind.n_bytes), np.uint8)
    past = native.put_blocks(kind.layout, list(given.values()), blocks)
    if past is not None:
        raise ValueError(f"a {'scale' if past else 'code'} past {kind.name}")
    mask = np.uint8((1 << DTYPES[kind.dtypes["codes"]].bits) - 1)
    for some in _runs(kind, len(blocks)):
        codes = given["codes"][some].view(np.uint8) + np.uint8(kind.offset) & mask
        for field, at in kind.placed():
            if isinstance(field, TritField):
                field.put(codes, blocks[some], at)
    return blocks


def _carrier(kind: BlockType, role: str) -> str:
    """Numbers of 16 bits are unsigned integers, so that no bit of them is lost."""
    dtype = DTYPES[kind.dtypes[role]]
    return f"<u{dtype.bits // 8}" if dtype.bits > 8 else ("i1" if kind.dtypes[role].startswith("i") else "u1")


def _turned(kind: BlockType) -> Iterator[tuple[str, np.unsignedinteger[Any]]]:
    """Roles whose elements have some bits the other way in a block, and these bits."""
    for field in kind.fields:
        if isinstance(field, NumberField) and field.turned:
            yield field.role, np.dtype(_carrier(kind, field.role)).type(field.turned)


def _runs(kind: BlockType, n_blocks: int) -> Iterator[slice]:
    """Runs of blocks for fields that numpy moves; none where there are none."""
    if any(isinstance(field, TritField) for field in kind.fields):
        for first in range(0, n_blocks, _BLOCKS_AT_ONCE):
            yield slice(first, first + _BLOCKS_AT_ONCE)
