"""The frozen records of a file's index (FORMAT.md section 3), shared by every layer that reads or writes one."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import NamedTuple

from spqfmt import wire

FLOATS = frozenset({"f64", "f32", "f16", "bf16"})
"""Dtypes that models compute in; one-byte floats are for storing only."""


class PlaneChunk(NamedTuple):
    """One plane of one chunk: where its stored bytes lie and what they decode to."""

    offset: int
    stored_bytes: int
    raw_bytes: int
    codec: int
    crc32: int


class Chunk(NamedTuple):
    """A run of a stream's elements, from `first` on."""

    first: int
    n_elements: int
    planes: tuple[PlaneChunk, ...]


@dataclass(frozen=True, slots=True)
class Stream:
    """One homogeneous array of a tensor. `same_as` is the number of the tensor that holds it instead."""

    role: str
    dtype: str
    n: int
    chunks: tuple[Chunk, ...]
    entropy_bits: tuple[int, ...] | None = None
    same_as: int | None = None

    @property
    def stored_bytes(self) -> int:
        """Bytes of all chunks, padding between them not counted."""
        return sum(plane.stored_bytes for chunk in self.chunks for plane in chunk.planes)

    @property
    def raw_bytes(self) -> int:
        """Bytes that the chunks decode to."""
        return sum(plane.raw_bytes for chunk in self.chunks for plane in chunk.planes)


@dataclass(frozen=True)
class TensorRecord:
    """One tensor of a file. `parameters` are the scheme's (FORMAT.md section 5)."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    scheme: str
    method: str = ""
    parameters: Mapping[str, object] = field(default_factory=dict)
    streams: tuple[Stream, ...] = ()
    tied_to: str | None = None
    transposed: bool = False
    activation_clamp: Mapping[str, object] | None = None
    activation_quantization: Mapping[str, object] | None = None

    @property
    def n_weights(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def source_bytes(self) -> int:
        """Size of the tensor in its own dtype."""
        return self.n_weights * wire.DTYPES[self.dtype].bits // 8

    @property
    def bf16_bytes(self) -> int:
        """Its size in BF16; the source's for what is no float of 16 or more bits."""
        return bf16_bytes(self.dtype, self.n_weights)

    @cached_property
    def matrix_shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix that uniform and grouped describe (FORMAT.md 5.1)."""
        shape = tuple(reversed(self.shape)) if self.transposed else self.shape
        return (prod(shape[:-1]), shape[-1]) if shape else (1, 1)

    @cached_property
    def by_role(self) -> Mapping[str, Stream]:
        """The streams by role."""
        return {stream.role: stream for stream in self.streams}


@dataclass(frozen=True, slots=True)
class AssetRecord:
    """A small file of the model that travels with it (FORMAT.md section 7)."""

    name: str
    stream: Stream


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tensors that are read together: bytes `offset` to `end` of the file."""

    name: str
    first_tensor: int
    n_tensors: int
    offset: int
    end: int


@dataclass(frozen=True, slots=True)
class Shard:
    """Which of how many files this one is (FORMAT.md section 8)."""

    number: int
    count: int


@dataclass(frozen=True)
class Index:
    """All that a file says of itself."""

    segment_alignment: int
    segments: tuple[Segment, ...]
    tensors: tuple[TensorRecord, ...]
    assets: tuple[AssetRecord, ...]
    metadata: Mapping[str, str]
    partial_plan: Mapping[str, object] | None = None
    shard: Shard | None = None

    @cached_property
    def by_name(self) -> Mapping[str, TensorRecord]:
        """The tensors by name, in execution order."""
        return {tensor.name: tensor for tensor in self.tensors}


def bf16_bytes(dtype: str, n: int) -> int:
    """Size of so many elements in BF16; as they are for what is no float of 16 or more bits."""
    return 2 * n if dtype in FLOATS else n * wire.DTYPES[dtype].bits // 8


def main_dtype(records: Iterable[TensorRecord]) -> str:
    """The dtype of FLOATS that most weights have; f32 when there is none."""
    weights = Counter[str]()
    for record in records:
        if record.tied_to is None and record.dtype in FLOATS:
            weights[record.dtype] += record.n_weights
    return max(weights, key=lambda dtype: weights[dtype], default="f32")


def align(offset: int, alignment: int) -> int:
    """The smallest multiple of `alignment` that is not below `offset`."""
    return -(-offset // alignment) * alignment


def n_planes(dtype: str) -> int:
    """Planes of a stream of this dtype (FORMAT.md 3.2)."""
    return max(1, wire.DTYPES[dtype].bits // 8)


def chunk_raw_bytes(dtype: str, n_elements: int) -> int:
    """Bytes that one plane of a chunk decodes to (FORMAT.md 3.3)."""
    return -(-n_elements * min(wire.DTYPES[dtype].bits, 8) // 8)
