"""Tensors cut into parts: runs of whole chunks that are read, checked and decoded together."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from spqfmt import wire
from spqfmt.cached import cached_property
from spqfmt.container.planes import jobs_of
from spqfmt.kernels.narrow import narrow_bytes
from spqfmt.records import Chunk, PlaneChunk, Stream, TensorRecord
from spqfmt.schemes.codes import by_columns
from spqfmt.schemes.registry import SCHEMES, packed_scheme
from spqfmt.schemes.trellis import TrellisTiles, tiles_of_record

PART_BYTES = 1 << 20
"""Decoded bytes from which on a part is closed. The smallest ceiling grows with it, the cost of handing over falls."""


_ESCAPES = ((3.25, 768), (3.75, 64))
"""Codes that are stored in up to so many bits have room for one escape among so many: a 32nd of a bit for each code,
and three eighths. Codes of a normal distribution need half of that at these bits."""


class Merge(NamedTuple):
    """Planes of one chunk, from `scratch_offset` on in the scratch memory, become elements at `out_offset`."""

    scratch_offset: int
    out_offset: int
    n_bytes: int


@dataclass(frozen=True, eq=False)
class Part:
    """Channels `first` to `stop` of a tensor's codes (or values) as stored: rows, or columns by orientation.

    Decoded it is the packed elements in stored order (FORMAT.md 3.2), codes where path codes are stored; a dense
    tensor's are whole elements. Where `is_turned`, it is decoded to [rows, channels of the part] all the same.
    """

    record: TensorRecord
    reader_number: int
    chunks: tuple[Chunk, ...]
    first: int
    stop: int
    is_whole: bool

    @property
    def name(self) -> str:
        """The tensor's name, with the channels where they are not all."""
        return self.record.name if self.is_whole else f"{self.record.name}[{self.first}:{self.stop}]"

    @cached_property
    def dtype(self) -> str:
        """Dtype of the stream that the part is of."""
        return weights_stream(self.record).dtype

    @cached_property
    def planes(self) -> tuple[PlaneChunk, ...]:
        """All planes in the order of the file."""
        return tuple(plane for chunk in self.chunks for plane in chunk.planes)

    @property
    def offset(self) -> int:
        """Where the stored bytes begin in the file."""
        return self.planes[0].offset

    @cached_property
    def stored_bytes(self) -> int:
        """Bytes to read, padding between planes included."""
        return self.planes[-1].offset + self.planes[-1].stored_bytes - self.offset

    @cached_property
    def decoded_bytes(self) -> int:
        """Bytes that the part decodes to."""
        return sum(plane.raw_bytes for plane in self.planes)

    @cached_property
    def scratch_bytes(self) -> int:
        """Memory of a device for the planes of elements wider than a byte, before they are merged; else 0.

        It needs none where low bytes are stored as they are: high ones are put beside them as they are decoded.
        """
        if not self.merges:
            return 0
        in_place = wire.DTYPES[self.dtype].bits == 16 and wire.DTYPES[self.dtype].rotate
        for chunk in self.chunks if in_place else ():
            low, high = (plane.codec for plane in chunk.planes)
            in_place &= low == wire.CODEC_RAW and high in {wire.CODEC_RAW, wire.CODEC_RANS}
        return 0 if in_place else self.decoded_bytes

    @cached_property
    def is_turned(self) -> bool:
        """Whether decoding ends with turning columns to rows, for the products."""
        return by_columns(self.record) and packed_scheme(self.record).turns_columns

    @cached_property
    def work_bytes(self) -> int:
        """Memory that decoding on the CPU takes beside what it decodes to."""
        return self.decoded_bytes if self.merges or self.is_turned else 0

    @cached_property
    def tiles(self) -> TrellisTiles | None:
        """Tiles of path codes, of which decoding ends with making codes; None where codes are stored."""
        return tiles_of_record(self.record)

    @cached_property
    def narrow_bytes(self) -> int:
        """Room for the narrow form of the decoded codes (spqfmt.kernels.narrow); 0 where they are not known to fit.

        That they do is likely by their stored bits; what has no room after all is held in another way.
        """
        if self.dtype not in {"i8", "u8"}:
            return 0
        # A code has one bit more than its path code.
        bits = 8 * self.stored_bytes / self.n_weights + (self.tiles is not None)
        one_in = next((one_in for most, one_in in _ESCAPES if bits <= most), None)
        room = 0 if one_in is None else narrow_bytes(self.n_weights, self.n_weights // one_in)
        return room if room < self.decoded_bytes else 0

    @cached_property
    def n_weights(self) -> int:
        """Number of weights in the part."""
        return sum(chunk.n_elements for chunk in self.chunks)

    @cached_property
    def merges(self) -> tuple[Merge, ...]:
        """What is left to do after decoding, for elements wider than a byte."""
        if wire.DTYPES[self.dtype].bits <= 8:
            return ()
        merges, at = [], 0
        for chunk in self.chunks:
            size = sum(plane.raw_bytes for plane in chunk.planes)
            merges.append(Merge(at, at, size))
            at += size
        return tuple(merges)

    @cached_property
    def jobs(self) -> NDArray[np.int64]:
        """Rows of native.DECODE_JOB_COLUMNS: from the part's stored bytes to its decoded or scratch bytes."""
        return jobs_of(self.planes)

    @cached_property
    def used_bits(self) -> int:
        """Bits of the last decoded byte that hold elements, which are narrower than a byte; 0 for all of them."""
        return self.n_weights * wire.DTYPES[self.dtype].bits % 8

    @cached_property
    def is_stored_as_decoded(self) -> bool:
        """Whether the stored bytes are the decoded ones: one raw chunk, of whole elements in order."""
        is_raw = len(self.planes) == 1 and self.planes[0].codec == wire.CODEC_RAW
        return is_raw and not self.work_bytes and self.tiles is None


def weights_stream(record: TensorRecord) -> Stream:
    """The stream that is cut into parts."""
    return record.by_role[SCHEMES[record.scheme].weights]


def channels(record: TensorRecord) -> tuple[int, int]:
    """Number of channels of the weights as stored, and elements in one."""
    rows, columns = record.matrix_shape
    return (columns, rows) if by_columns(record) else (rows, columns)


def cut(record: TensorRecord, reader_number: int = 0, part_bytes: int = PART_BYTES) -> tuple[Part, ...]:
    """Cut a tensor into parts, in order.

    Each ends where a chunk and a channel end, and a tile of path codes, the first time from `part_bytes` on.
    """
    tiles = tiles_of_record(record)
    stream = weights_stream(record)
    n_channels, width = channels(record)
    element_bits = wire.DTYPES[stream.dtype].bits
    runs: list[tuple[int, int, list[Chunk]]] = []
    begin, run = 0, []
    for chunk in stream.chunks:
        run.append(chunk)
        end = chunk.first + chunk.n_elements
        whole_bytes = end * element_bits % 8 == 0
        if end == stream.n or (
            end % width == 0
            and whole_bytes
            and (end - begin * width) * element_bits >= 8 * part_bytes
            and (tiles is None or tiles.start(end // width) == end // width)
        ):
            runs.append((begin, end // width, run))
            begin, run = end // width, []
    assert runs[-1][1] == n_channels
    return tuple(
        Part(
            record=record,
            reader_number=reader_number,
            chunks=tuple(chunks),
            first=first,
            stop=stop,
            is_whole=len(runs) == 1,
        )
        for first, stop, chunks in runs
    )
