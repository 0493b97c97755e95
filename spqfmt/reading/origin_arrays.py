"""Parts of tensors that were taken apart from arrays: one stream in another order and width.

spec/origins/arrays.md says how.
"""

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spqfmt import wire
from spqfmt.codecs.elements import CARRIERS, Elements, pack_elements
from spqfmt.container.fetch import StreamFetch
from spqfmt.container.reader import Reader
from spqfmt.container.strict_json import member
from spqfmt.errors import CorruptError
from spqfmt.records import TensorRecord
from spqfmt.schemes import codes, tiles
from spqfmt.schemes.base import check_int
from spqfmt.schemes.grouped import unpermute

LAYOUT = ("arrays", 1)
COLUMN_GROUPS = "column_groups"
"""Takes the place of a stream's role in a part."""
GROUP_BITS = 32
_IN_BYTES = (2, 4, 8)
"""Bits of elements that bytes are made of."""
_WORDS = (8, 16, 32, 64)
# A multiple of 8: what so many elements are written as ends at a byte.
_AT_ONCE = 1 << 18


def array_part(reader: Reader, record: TensorRecord, origin: Mapping[str, object], number: int) -> bytes:
    """Part `number` of a tensor whose record has this `origin`. Raises CorruptError."""
    where = f"tensor {record.name!r}: origin"
    parts = member(dict(origin), "parts", list, where)
    if number >= len(parts) or not isinstance(parts[number], dict):
        raise CorruptError(f"{where}: no part {number}")
    return made(lambda role: elements_of(reader, record, role, where), parts[number], where).tobytes()


def made(
    elements_of: Callable[[str], tuple[NDArray[Any], int]], part: Mapping[str, Any], where: str
) -> NDArray[np.uint8]:
    """A part, of the elements of a stream as unsigned integers, and the bits of one. Raises CorruptError."""
    elements, width = elements_of(member(dict(part), "stream", str, where))
    bits = check_int(part.get("bits", width), f"{where}: bits", 1, 64)
    add = check_int(part.get("add", 0), f"{where}: add", -(1 << 31), 1 << 31)
    found = reordered(elements, part, "dims", axes_key="axes", where=where)
    flip = part.get("flip", False)
    if type(flip) is not bool:
        raise CorruptError(f"{where}: flip is neither true nor false")
    data = _written((found[..., ::-1] if flip else found).reshape(-1), width, add, bits)
    if "unit_bits" not in part:
        if "unit_dims" in part or "unit_axes" in part:
            raise CorruptError(f"{where}: units of no bits")
        return data
    unit = check_int(part["unit_bits"], f"{where}: unit_bits", 1)
    n_bits = elements.size * bits
    if "unit_dims" not in part or n_bits % unit or n_bits % 8:
        raise CorruptError(f"{where}: no whole number of units, or of no dimensions")
    if unit in _WORDS:
        words = reordered(data.view(f"<u{unit // 8}"), part, "unit_dims", axes_key="unit_axes", where=where)
        return np.ascontiguousarray(words).reshape(-1).view(np.uint8)
    flat, of_unit = (np.unpackbits(data, bitorder="little"), unit) if unit % 8 else (data, unit // 8)
    units = flat.reshape(-1, of_unit)
    order = reordered(np.arange(len(units)), part, "unit_dims", axes_key="unit_axes", where=where).reshape(-1)
    turned = units[order].reshape(-1)
    return np.packbits(turned, bitorder="little") if unit % 8 else turned


def elements_of(reader: Reader, record: TensorRecord, role: str, where: str) -> tuple[NDArray[Any], int]:
    """The elements that a part is made of, as unsigned integers, and the bits of one."""
    if role == COLUMN_GROUPS:
        if record.scheme != "grouped":
            raise CorruptError(f"{where}: groups of the scheme {record.scheme}")
        columns = record.matrix_shape[1]
        return column_groups(record.parameters, columns, _permutation(reader, record, columns), where)
    if role not in record.by_role:
        raise CorruptError(f"{where}: no stream {role[:80]!r}")
    dtype = record.by_role[role].dtype
    bits = wire.DTYPES[dtype].bits
    is_matrix = role in {"codes", "values"} and not record.is_named and record.shape and record.n_weights
    found = matrix_elements(reader, record, role) if is_matrix else reader.read_elements(record, role)
    return unsigned(found, dtype), bits


def column_groups(
    parameters: Mapping[str, object], columns: int, permutation: NDArray[Any] | None, where: str
) -> tuple[NDArray[np.uint32], int]:
    """The group of each column of the matrix in its own order, and the bits of one."""
    size = check_int(parameters.get("group_size"), f"{where}: group_size", 1)
    groups = (np.arange(columns) // size).astype(np.uint32)
    if permutation is not None:
        stored, groups = groups, np.empty_like(groups)
        groups[permutation] = stored
    return groups, GROUP_BITS


def unsigned(elements: Elements, dtype: str) -> NDArray[Any]:
    """Elements as unsigned integers of their bits."""
    bits = wire.DTYPES[dtype].bits
    found = elements.view(f"<u{elements.dtype.itemsize}")
    return found & ((1 << bits) - 1) if bits < 8 and elements.dtype.kind == "i" else found


def matrix_elements(reader: Reader, record: TensorRecord, role: str) -> Elements:
    """Codes or values in row-major order of the matrix, its columns in their own order."""
    n_rows, n_columns = record.matrix_shape
    rows, columns = range(n_rows), range(n_columns)
    stored = np.empty((n_rows, n_columns), CARRIERS[record.by_role[role].dtype])
    fetch = StreamFetch(reader, record)
    for tile in codes.tiles(record, fetch, rows, columns, most=tiles.TILE_ELEMENTS, role=role):
        tiles.put(stored, rows, columns, of_rows=tile.rows, of_columns=tile.columns, values=tile.codes)
    if "permutation" not in record.by_role:
        return stored.reshape(-1)
    return unpermute(stored, _permutation(reader, record, n_columns)).reshape(-1)


def _permutation(reader: Reader, record: TensorRecord, columns: int) -> NDArray[np.int64]:
    if "permutation" not in record.by_role:
        return np.arange(columns)
    reader.check_elements(record)
    return reader.read_elements(record, "permutation").astype(np.int64)


def reordered(
    elements: NDArray[Any], part: Mapping[str, object], dims_key: str, axes_key: str, where: str
) -> NDArray[Any]:
    """The elements as an array of these dimensions in another order; as they are where there are none."""
    if dims_key not in part and axes_key not in part:
        return elements
    dims, axes = (_list(part.get(key), f"{where}: {key}") for key in (dims_key, axes_key))
    if prod(dims) != elements.size or 0 in dims or sorted(axes) != list(range(len(dims))):
        raise CorruptError(f"{where}: {dims_key} of other elements, or {axes_key} that do not fit them")
    return elements.reshape(dims).transpose(axes)


def _list(found: object, what: str) -> list[int]:
    if not isinstance(found, list) or not 1 <= len(found) <= 8:
        raise CorruptError(f"{what}: no list of 1 to 8 integers")
    return [check_int(value, what) for value in found]


def _written(elements: NDArray[Any], width: int, add: int, bits: int) -> NDArray[np.uint8]:
    """Each element with `add` modulo 2^bits, in `bits` bits, one after the other."""
    if add == 0 and bits == width and bits % 8 == 0:
        return np.ascontiguousarray(elements).view(np.uint8)
    data = np.empty(-(-elements.size * bits // 8), np.uint8)
    for first in range(0, elements.size, _AT_ONCE):
        run = elements[first : first + _AT_ONCE]
        if bits == width and bits in _IN_BYTES:
            # What passes the element's bits is cut off as it is packed.
            piece = pack_elements(run.astype(np.uint8, copy=False) + np.uint8(add % 256), f"u{bits}")
        elif bits == 3 and not run.size % 8:
            piece = _three_bits(run.astype(np.uint32) + np.uint32(add % 8) & np.uint32(7))
        else:
            piece = _bits(run.astype(np.uint64), add, bits)
        at = first * bits // 8
        data[at : at + piece.size] = piece
    return data


def _three_bits(elements: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """Eight of them in three bytes, as GPTQ has them, without a byte for each bit."""
    together = (elements.reshape(-1, 8) << np.arange(0, 24, 3, dtype=np.uint32)).sum(1, dtype=np.uint32)
    narrow: NDArray[np.uint8] = together.astype("<u4").view(np.uint8).reshape(-1, 4)[:, :3].reshape(-1)
    return narrow


def _bits(elements: NDArray[np.uint64], add: int, bits: int) -> NDArray[np.uint8]:
    with np.errstate(over="ignore"):
        values = (elements + np.uint64(add % (1 << 64))).astype("<u8")
    n_bytes = -(-bits // 8)
    narrow = values.view(np.uint8).reshape(-1, 8)[:, :n_bytes]
    if bits % 8 == 0:
        return narrow.reshape(-1)
    return np.packbits(
        np.unpackbits(narrow, axis=1, bitorder="little")[:, :bits].reshape(-1), bitorder="little"
    )
