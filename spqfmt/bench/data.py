"""The data that codecs are measured on: codes as quantizers make them, and BF16 weights."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spqfmt.codecs.base import Bytes
from spqfmt.codecs.elements import order0_bits, to_planes

ROW = 1024
GROUP = 64
SPARSITY = 0.4


@dataclass(frozen=True)
class ByteLayout:
    """One way to lay the same symbols out as bytes.

    `raw` is what the decoder must give back. Elements of `element_bytes` > 1 are handed to the coder as they are, or,
    if `planes`, as byte planes; splitting and merging then count in the coder's time.
    """

    name: str
    raw: Bytes
    element_bytes: int = 1
    planes: bool = False


@dataclass(frozen=True)
class Dataset:
    """Symbols with their order-0 entropy in bits a symbol."""

    name: str
    n_symbols: int
    entropy: float
    layouts: tuple[ByteLayout, ...]


def synthetic(name: str, n_symbols: int) -> Dataset:
    """A built-in data set (a key of SYNTHETIC) of `n_symbols`, rounded up to whole rows; the same on every call."""
    return SYNTHETIC[name](_gaussian(n_symbols))


def _gaussian(n_symbols: int) -> NDArray[np.float32]:
    rows = -(-n_symbols // ROW)
    return np.random.default_rng(2306).standard_normal((rows, ROW), dtype=np.float32)


def _int8(weights: NDArray[np.float32]) -> Dataset:
    return _bytes("int8", _row_codes(weights))


def _int8_sparse(weights: NDArray[np.float32]) -> Dataset:
    # Magnitude pruning, as in JSQ: the smallest 40 % become zero.
    threshold = np.quantile(np.abs(weights[:64]), SPARSITY)
    return _bytes("int8_sparse", _row_codes(np.where(np.abs(weights) < threshold, 0, weights)))


def _row_codes(weights: NDArray[np.float32]) -> Bytes:
    """INT8 with one absolute-maximum scale a row."""
    codes = np.rint(weights * (127 / np.abs(weights).max(axis=1, keepdims=True))).astype(np.int8)
    return _flat(codes)


def _int4(weights: NDArray[np.float32]) -> Dataset:
    return _nibbles("int4", _group_codes(weights, 15))


def _int3(weights: NDArray[np.float32]) -> Dataset:
    return _nibbles("int3", _group_codes(weights, 7))


def _group_codes(weights: NDArray[np.float32], largest: int) -> Bytes:
    """Codes 0..largest between each group's minimum and maximum."""
    groups = weights.reshape(-1, GROUP)
    low = groups.min(axis=1, keepdims=True)
    step = (groups.max(axis=1, keepdims=True) - low) / largest
    return _flat(np.rint((groups - low) / step).astype(np.uint8))


def _bf16(weights: NDArray[np.float32]) -> Dataset:
    bits = (weights * np.float32(0.02)).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).reshape(-1)
    entropy = sum(map(order0_bits, to_planes(rounded, "bf16"))) / rounded.size
    raw = _flat(rounded)
    layouts = (ByteLayout("planes", raw, 2, planes=True), ByteLayout("elements", raw, 2))
    return Dataset("bf16", rounded.size, entropy, layouts)


def _flat(elements: NDArray[Any]) -> Bytes:
    """The memory of an array as bytes."""
    return elements.reshape(-1).view(np.uint8)


def _bytes(name: str, codes: Bytes) -> Dataset:
    return Dataset(name, codes.size, _entropy(codes), (ByteLayout("bytes", codes),))


def _nibbles(name: str, codes: Bytes) -> Dataset:
    pairs: Bytes = np.bitwise_or(codes[0::2], codes[1::2] << 4, dtype=np.uint8)
    layouts = (ByteLayout("nibbles", pairs), ByteLayout("bytes", codes))
    return Dataset(name, codes.size, _entropy(codes), layouts)


def _entropy(codes: Bytes) -> float:
    return order0_bits(codes) / codes.size


SYNTHETIC: dict[str, Callable[[NDArray[np.float32]], Dataset]] = {
    "int8": _int8,
    "int8_sparse": _int8_sparse,
    "int4": _int4,
    "int3": _int3,
    "bf16": _bf16,
}
