"""Typed elements <-> the byte planes that codecs see (FORMAT.md 3.2).

In memory each dtype has a numpy *carrier*: the native type where there is one, the bits as unsigned integers for bf16
and the small floats, and one element a byte for those narrower than 8 bits.
"""

from functools import cache
from math import gcd
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from spqfmt import wire
from spqfmt.codecs.base import Bytes
from spqfmt.errors import CorruptError
from spqfmt.kernels import native
from spqfmt.records import chunk_raw_bytes, n_planes

Elements: TypeAlias = NDArray[Any]

CARRIERS: dict[str, np.dtype[Any]] = {
    name: np.dtype(code)
    for name, code in {
        "f64": "<f8", "f32": "<f4", "f16": "<f2", "bf16": "<u2", "c64": "<c8",
        "i64": "<i8", "i32": "<i4", "i16": "<i2", "i8": "i1", "i4": "i1", "i2": "i1",
        "u64": "<u8", "u32": "<u4", "u16": "<u2", "u8": "u1", "u4": "u1", "u2": "u1",
        "bool": "u1", "log8": "u1", **dict.fromkeys(wire.SMALL_FLOATS, "u1"),
    }.items()
}  # fmt: skip


def to_planes(elements: Elements, dtype: str) -> list[Bytes]:
    """The planes of a run of elements: `n_planes(dtype)` uint8 arrays of `chunk_raw_bytes` each."""
    bits = wire.DTYPES[dtype].bits
    if elements.dtype != CARRIERS[dtype] or elements.ndim != 1:
        raise TypeError(f"{dtype} is carried by {CARRIERS[dtype]}, not {elements.dtype}")
    raw = np.ascontiguousarray(elements).view(np.uint8)
    if bits == 8:
        return [raw]
    if bits < 8:
        return [_pack(raw, bits)]
    planes = np.empty(raw.size, np.uint8)
    native.split_planes(raw, bits // 8, wire.DTYPES[dtype].rotate, planes)
    return list(planes.reshape(bits // 8, -1))


def packed(elements: Elements, dtype: str) -> Bytes:
    """A run of elements as bytes: as they are in memory, those narrower than a byte packed as in one chunk."""
    if wire.DTYPES[dtype].bits < 8:
        return to_planes(elements, dtype)[0]
    return np.ascontiguousarray(elements).view(np.uint8)


def from_planes(planes: Bytes, dtype: str, n_elements: int, out: Elements) -> None:
    """Fill `out` (carrier, n_elements, contiguous) from the planes, one after the other in `planes`."""
    bits = wire.DTYPES[dtype].bits
    if planes.size != n_planes(dtype) * chunk_raw_bytes(dtype, n_elements):
        raise ValueError("planes have the wrong size")
    if bits == 8:
        check_packed(planes, dtype, n_elements)
        out.view(np.uint8)[:] = planes
    elif bits < 8:
        check_packed(planes, dtype, n_elements)
        _unpack(planes, bits, dtype.startswith("i"), out.view(np.uint8))
    else:
        native.merge_planes(planes, bits // 8, wire.DTYPES[dtype].rotate, out.view(np.uint8))


def pack_elements(elements: Elements, dtype: str) -> Bytes:
    """The bytes of elements (carrier) in row-major order, little-endian, narrow ones packed as in one chunk."""
    raw = np.ascontiguousarray(elements).reshape(-1).view(np.uint8)
    bits = wire.DTYPES[dtype].bits
    return raw if bits >= 8 else _pack(raw, bits)


def unit_of(bits: int) -> int:
    """The least number of elements of so many bits that fill whole bytes."""
    return 8 // gcd(8, bits)


def check_packed(packed: Bytes, dtype: str, n_elements: int) -> None:
    """Raise CorruptError where decoded bytes are no elements: unused bits that are not zero, a bool of another byte."""
    used = n_elements * wire.DTYPES[dtype].bits % 8
    if used and packed[-1] >> used:
        raise CorruptError("unused bits of the last byte are not zero")
    if dtype == "bool" and packed.size and packed.max() > 1:
        raise CorruptError("a bool is a byte other than 0 and 1")


def _pack(raw: Bytes, bits: int) -> Bytes:
    per_unit = unit_of(bits)
    if bits in {2, 4} and raw.size % per_unit == 0:
        packed = np.empty(raw.size // per_unit, np.uint8)
        native.pack_bits(raw, bits, packed)
        return packed
    padded = np.zeros(-(-raw.size // per_unit) * per_unit, np.uint8)
    padded[: raw.size] = raw & ((1 << bits) - 1)
    lanes = padded.reshape(-1, per_unit)
    words = (lanes.astype("<u4") << np.arange(0, per_unit * bits, bits, dtype="<u4")).sum(1, dtype="<u4")
    whole = words.view(np.uint8).reshape(-1, 4)[:, : per_unit * bits // 8]
    return np.ascontiguousarray(whole).reshape(-1)[: -(-raw.size * bits // 8)]


def _unpack(packed: Bytes, bits: int, signed: bool, out: Bytes) -> None:
    per_unit = unit_of(bits)
    if per_unit * bits > 8:
        _unpack_units(packed, bits, out)
        return
    used = out.size % per_unit
    table = _unpacked(bits, signed)
    whole = out.size - used
    out[:whole].view(table.dtype)[:] = table[packed[: whole // per_unit]]
    out[whole:] = table[packed[whole // per_unit :]].view(np.uint8)[:used]


def _unpack_units(packed: Bytes, bits: int, out: Bytes) -> None:
    """Unsigned elements that may lie in two bytes."""
    per_unit, unit_bytes = unit_of(bits), unit_of(bits) * bits // 8
    units = np.zeros((-(-packed.size // unit_bytes), 4), np.uint8)
    padded = np.zeros(len(units) * unit_bytes, np.uint8)
    padded[: packed.size] = packed
    units[:, :unit_bytes] = padded.reshape(-1, unit_bytes)
    lanes = units.view("<u4") >> np.arange(0, per_unit * bits, bits, dtype="<u4") & ((1 << bits) - 1)
    out[:] = lanes.reshape(-1)[: out.size]


@cache
def _unpacked(bits: int, signed: bool) -> NDArray[Any]:
    """The table that gives for each byte the elements that it packs, side by side in one integer."""
    bytes_, sign = np.arange(256)[:, None], 1 << (bits - 1)
    codes = bytes_ >> np.arange(0, 8, bits) & ((1 << bits) - 1)
    codes = (codes ^ sign) - sign if signed else codes
    return np.ascontiguousarray(codes.astype(np.uint8)).view(f"<u{8 // bits}")[:, 0]


def order0_bits(symbols: Bytes) -> float:
    """Order-0 entropy of all symbols together, in bits: the bound for an order-0 coder with a table of its own."""
    return _entropy_bits(native.histogram(symbols), symbols.size)


def element_bits(plane: Bytes, dtype: str, n_elements: int) -> float:
    """Order-0 entropy of the elements of a plane in bits: of its bytes, or of what each of these packs."""
    bits = wire.DTYPES[dtype].bits
    if bits >= 8:
        return order0_bits(plane)
    if 8 % bits:
        elements = np.empty(n_elements, np.uint8)
        _unpack(plane, bits, dtype.startswith("i"), elements)
        return order0_bits(elements)
    # Counted by bytes, which are fewer: elements of one place are every (1 << at)th run of these.
    of_bytes = native.histogram(plane)
    counts = np.zeros(1 << bits, np.uint64)
    for at in range(0, 8, bits):
        counts += of_bytes.reshape(-1, 1 << bits, 1 << at).sum((0, 2), dtype=np.uint64)
    counts[0] -= np.uint64(plane.size * (8 // bits) - n_elements)  # the unused bits of the last byte
    return _entropy_bits(counts, n_elements)


def _entropy_bits(counts: NDArray[np.uint64], n: int) -> float:
    found = counts[counts > 0].astype(np.float64)
    return float(n * np.log2(n) - (found * np.log2(found)).sum())
