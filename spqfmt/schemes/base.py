"""What a scheme is: weights <-> streams. Normative (FORMAT.md section 5)."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from spqfmt.codecs.chunks import chunk_sizes, split
from spqfmt.codecs.elements import Elements
from spqfmt.errors import CorruptError
from spqfmt.kernels.json_text import Wanted
from spqfmt.records import Stream, TensorRecord
from spqfmt.wire import DTYPES

Float32: TypeAlias = NDArray[np.float32]


class Fetch(Protocol):
    """Gives a tensor's scheme the elements of one of its streams."""

    def __call__(self, role: str, first: int = 0, stop: int | None = None) -> Elements:
        """Elements `first` to `stop` (default: all) of the stream, decoded and checked."""
        ...


class Streamed(Fetch, Protocol):
    """Gives them also where they are wanted, and without room for all of them."""

    def into(self, role: str, first: int, out: Elements) -> None:
        """Fill `out`, contiguous, with the elements from `first` on."""
        ...

    def runs(self, role: str, first: int = 0, stop: int | None = None) -> Iterator[tuple[Elements, int]]:
        """The elements of whole chunks, from `first` to `stop`: some, and how many times these follow each other."""
        ...


@dataclass(frozen=True)
class StreamData:
    """A stream on its way into a file.

    `sizes` fixes the elements of each chunk; `row_elements` only asks for cuts between rows.
    """

    role: str
    dtype: str
    elements: Elements
    row_elements: int = 1
    sizes: tuple[int, ...] | None = None

    @property
    def record(self) -> Stream:
        """Make the stream's record, still without chunks."""
        return Stream(self.role, self.dtype, self.elements.size)

    def chunks(self) -> Iterator[Elements]:
        """The elements of each of its chunks, in order."""
        n, sizes = self.elements.size, self.sizes
        if sizes is None:
            sizes = tuple(chunk_sizes(n, DTYPES[self.dtype].bits, self.row_elements)) if n else ()
        return split(self.elements, sizes)


@dataclass(frozen=True)
class Encoded:
    """What a scheme makes of one tensor: its name, its parameters for the index and its streams."""

    scheme: str
    parameters: Mapping[str, object]
    streams: tuple[StreamData, ...]
    same_as: Mapping[str, tuple[StreamData, str]] = field(default_factory=dict)
    """What is shared, by role: a stream that an earlier tensor holds already, and that tensor's name."""
    why_no_codes: str = ""
    """Because of what these are the bytes of a source, and a pack says it; no part of the file."""

    @property
    def holders(self) -> dict[str, str]:
        """The names, by role, of the tensors that hold those streams already."""
        return {role: name for role, (_, name) in self.same_as.items()}


class Quantized(Protocol):
    """A tensor in the terms of a scheme."""

    def encode(self) -> Encoded:
        """Return the streams and parameters that store the tensor."""
        ...

    def dequantize(self) -> Float32:
        """The matrix that a reader restores, float32 [rows, columns], before it is rounded to the tensor's dtype."""
        ...


class Scheme(Protocol):
    """Reads one kind of tensor. Stateless. `roles` are those of its streams in their order.

    `parameters` are those that it knows, with what is wanted of each (spqfmt.kernels.json_text). Loaders decode its
    tensors whole, unless it is a PackedScheme (spqfmt.schemes.sides).
    """

    name: str
    roles: tuple[str, ...]
    weights: str
    """The role of the stream that holds an element for each weight."""
    is_quantized: bool
    """Whether these are codes for floats, restored in any float dtype; else they are the tensor's own elements."""
    parameters: Mapping[str, Wanted]

    @abstractmethod
    def check(self, record: TensorRecord) -> None:
        """Raise CorruptError unless parameters and streams obey FORMAT.md."""
        ...

    @abstractmethod
    def features(self, record: TensorRecord) -> set[str]:
        """Names of the required features that the tensor uses."""
        ...

    @abstractmethod
    def verify(self, record: TensorRecord, fetch: Streamed) -> None:
        """Raise CorruptError where elements break a rule that `check` cannot see, without dequantizing."""
        ...

    @abstractmethod
    def restore(
        self, record: TensorRecord, fetch: Streamed, rows: range, columns: range, out: Elements, dtype: str
    ) -> None:
        """Fill `out`, [rows, columns], not empty, with a part of the matrix, a piece after the other.

        It is the carrier of `dtype` (f64, f32, f16 or bf16), of its own dtype for dense, and need not be contiguous.
        """
        ...


class Roles:
    """Checks a record's streams against the roles that a scheme knows, in their order."""

    def __init__(self, record: TensorRecord, order: Sequence[str]) -> None:
        self.record = record
        self.order = order
        roles = [stream.role for stream in record.streams]
        places = [order.index(role) if role in order else -1 for role in roles]
        if -1 in places or places != sorted(set(places)):
            raise CorruptError(f"tensor {record.name!r}: streams {', '.join(roles)} are not in order")

    def optional(self, role: str, dtypes: Sequence[str], n: int | None = None) -> Stream | None:
        """The stream, when it is there, with its dtype and length checked."""
        stream = self.record.by_role.get(role)
        if stream is None:
            return None
        if stream.dtype not in dtypes:
            raise CorruptError(f"tensor {self.record.name!r}: {role} cannot be {stream.dtype}")
        if n is not None and stream.n != n:
            raise CorruptError(f"tensor {self.record.name!r}: {role} has {stream.n} elements, not {n}")
        return stream

    def required(self, role: str, dtypes: Sequence[str], n: int | None = None) -> Stream:
        """The stream, which must be there."""
        stream = self.optional(role, dtypes, n)
        if stream is None:
            raise CorruptError(f"tensor {self.record.name!r} has no stream {role}")
        return stream


def parameter_int(record: TensorRecord, key: str, low: int = 0) -> int:
    """An integer parameter, `low` or more."""
    return check_int(record.parameters.get(key), f"tensor {record.name!r}: {key}", low)


def check_int(value: object, what: str, low: int = 0, high: int = 2**53 - 1) -> int:
    """`value` as an integer within bounds, else CorruptError."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise CorruptError(f"{what} is not an integer from {low} to {high}")
    return value


def float_from_bits(bits: object, what: str) -> np.float32:
    """A binary32 number that the index stores as its bits."""
    value = np.uint32(check_int(bits, what, 0, 2**32 - 1)).view(np.float32)
    if not np.isfinite(value):
        raise CorruptError(f"{what} is not finite")
    return np.float32(value)


def bits_from_float(value: float | np.float32) -> int:
    """The bits of a binary32 number."""
    return int(np.float32(value).view(np.uint32))
