"""Opens a .spq file: header, trailer and index once, then chunks on demand."""

import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Self, cast

import numpy as np
import zstandard

from spqfmt import wire
from spqfmt.codecs.base import Bytes
from spqfmt.codecs.elements import CARRIERS, Elements, check_packed, from_planes
from spqfmt.codecs.zstd import check_window
from spqfmt.container import planes
from spqfmt.container.fetch import OpenChunk, StreamFetch, is_small
from spqfmt.container.index import parse_index
from spqfmt.container.located import at_plane, located
from spqfmt.container.source import FileSource, open_source
from spqfmt.container.trailer import (
    Trailer,
    check_digest,
    check_header,
    parse_trailer,
)
from spqfmt.errors import CorruptError, refused_by_zstd
from spqfmt.kernels import native
from spqfmt.kernels.json_text import check_json
from spqfmt.records import Chunk, Index, PlaneChunk, Stream, TensorRecord
from spqfmt.schemes.named import NAMED
from spqfmt.schemes.registry import scheme_of
from spqfmt.stand_ins import given_place

if TYPE_CHECKING:
    from spqfmt.remote.blocks import BlocksAhead

_ASSET_PIECE_BYTES = 1 << 20


class _Scratch(threading.local):
    """Memory that each thread uses again for every chunk: fresh pages would cost as much as decoding."""

    def __init__(self) -> None:
        self._stored = np.empty(0, np.uint8)
        self._planes = np.empty(0, np.uint8)

    def stored(self, n_bytes: int) -> Bytes:
        """Room for the stored bytes of one chunk plane."""
        if self._stored.size < n_bytes:
            self._stored = np.empty(n_bytes, np.uint8)
        return self._stored[:n_bytes]

    def planes(self, n_bytes: int) -> Bytes:
        """Room for the decoded planes of one chunk."""
        if self._planes.size < n_bytes:
            self._planes = np.empty(n_bytes, np.uint8)
        return self._planes[:n_bytes]


_scratch = _Scratch()


class Reader:
    """One file that is open for reading. Thread-safe: reads are positional, nothing is cached."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = given_place(path)
        self._source = open_source(self.path)
        self.read_into: Callable[[int, Bytes], None] = self._source.read_into
        """Fills an array with the bytes of the file from an offset on. Raises TruncatedError."""
        try:
            self.file_bytes = self._source.n_bytes
            with located(self.path):
                self.trailer, self.index = self._open()
            self._source.start_ahead()
        except BaseException:
            self._source.close()
            raise

    @property
    def remote(self) -> "BlocksAhead | None":
        """The bytes of a file that is not on this machine; None for one that is."""
        return None if isinstance(self._source, FileSource) else cast("BlocksAhead", self._source)

    def _open(self) -> tuple[Trailer, Index]:
        version = check_header(self.read_bytes(0, min(wire.HEADER_BYTES, self.file_bytes)), self.file_bytes)
        tail = self.read_bytes(self.file_bytes - wire.TRAILER_BYTES, wire.TRAILER_BYTES)
        trailer = parse_trailer(tail, version, self.file_bytes)
        text = self._index_text(trailer, tail)
        check_json(text)
        context = partial(located, self.path)
        return trailer, parse_index(
            text, trailer.index_offset, self.file_bytes, declared=trailer.required, context=context
        )

    def _index_text(self, trailer: Trailer, tail: bytes) -> bytes:
        stored = self.read_bytes(trailer.index_offset, trailer.index_stored_bytes)
        check_digest(trailer, tail, stored)
        return _decoded(stored, trailer.index_raw_bytes)

    def index_text(self) -> bytes:
        """The index as the file has it, with the keys that this version does not know. Read and checked anew."""
        tail = self.read_bytes(self.file_bytes - wire.TRAILER_BYTES, wire.TRAILER_BYTES)
        with located(self.path):
            text = self._index_text(self.trailer, tail)
            check_json(text)
        return text

    def close(self) -> None:
        """Close the file; later reads raise ValueError."""
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def read_bytes(self, offset: int, n_bytes: int) -> bytes:
        """Read these bytes of the file. Raises TruncatedError."""
        out = np.empty(n_bytes, np.uint8)
        self.read_into(offset, out)
        return out.tobytes()

    @property
    def n_read_bytes(self) -> int:
        """Bytes that all threads have read since the file was opened, what opening has read left out."""
        return self._source.n_read_bytes

    def forget(self, offset: int, n_bytes: int) -> None:
        """Ask the system to drop these bytes from its page cache; nothing happens where it cannot."""
        self._source.forget(offset, n_bytes)

    def read_plane(self, plane: PlaneChunk, out: Bytes) -> None:
        """Read, check and decode one chunk plane into `out`, uint8 of its raw size. Raises FormatError."""
        if plane.codec == wire.CODEC_RAW and plane.stored_bytes == out.size:
            # Nothing to decode: straight to where it is wanted.
            self.read_stored(plane, out)
            return
        stored = _scratch.stored(plane.stored_bytes)
        self.read_into(plane.offset, stored)
        with at_plane(plane):
            planes.decode(plane, stored, out)

    def read_stored(self, plane: PlaneChunk, out: Bytes) -> None:
        """Read the stored bytes of one chunk plane into `out`, uint8 of that size, and check them."""
        self.read_into(plane.offset, out)
        with at_plane(plane):
            planes.check(out, plane.crc32)

    def read_packed(self, chunk: Chunk, dtype: str, out: Bytes) -> None:
        """Decode one chunk into `out`: elements as they are in memory, narrower ones than a byte packed."""
        bits = wire.DTYPES[dtype].bits
        decoded = out if bits <= 8 else _scratch.planes(out.size)
        at = 0
        for plane in chunk.planes:
            self.read_plane(plane, decoded[at : at + plane.raw_bytes])
            at += plane.raw_bytes
        if bits > 8:
            native.merge_planes(decoded, bits // 8, wire.DTYPES[dtype].rotate, out)
        else:
            check_packed(out, dtype, chunk.n_elements)

    def read_chunk(self, chunk: Chunk, dtype: str, out: Elements) -> None:
        """Decode one chunk into `out`, its elements' carrier."""
        if wire.DTYPES[dtype].bits >= 8:
            self.read_packed(chunk, dtype, out.view(np.uint8))
            return
        packed = _scratch.planes(chunk.planes[0].raw_bytes)
        self.read_packed(chunk, dtype, packed)
        from_planes(packed, dtype, chunk.n_elements, out)

    def check_chunk(self, chunk: Chunk, dtype: str) -> None:
        """Decode one chunk and throw the elements away. Raises what reading it would."""
        if not is_small(chunk):
            for _ in OpenChunk(self, chunk, dtype).runs():
                pass
            return
        for plane in chunk.planes:
            out = _scratch.planes(plane.raw_bytes)
            self.read_plane(plane, out)
            if wire.DTYPES[dtype].bits <= 8:
                check_packed(out, dtype, chunk.n_elements)

    def owner(self, stream: Stream) -> Stream:
        """The stream that holds the chunks: `stream` itself, or the one it is the same as."""
        if stream.same_as is None:
            return stream
        return self.index.tensors[stream.same_as].by_role[stream.role]

    def read_elements(
        self, record: TensorRecord, role: str, first: int = 0, stop: int | None = None
    ) -> Elements:
        """Elements `first` to `stop` of a stream, decoding only the chunks that hold them, side by side."""
        return StreamFetch(self, record)(role, first, stop)

    def check_elements(self, record: TensorRecord) -> None:
        """Raise CorruptError where the streams of a tensor break a rule that no chunk shows alone (FORMAT.md 5)."""
        if record.tied_to is None:
            with located(self.path):
                scheme_of(record.scheme).verify(record, StreamFetch(self, record))

    def read_rows(
        self, record: TensorRecord, first: int = 0, stop: int | None = None, dtype: str = "f32"
    ) -> Elements:
        """Rows of the stored matrix (FORMAT.md 5.1) as the carrier of `dtype`; a dense tensor's of its own dtype."""
        self.refuse_named(record)
        rows, columns = record.matrix_shape
        rows_wanted = range(first, rows if stop is None else stop)
        carrier = CARRIERS[dtype if scheme_of(record.scheme).is_quantized else record.dtype]
        out = np.empty((len(rows_wanted), columns), carrier)
        self.restore(record, rows_wanted, range(columns), out=out, dtype=dtype)
        return out

    def restore(self, record: TensorRecord, rows: range, columns: range, out: Elements, dtype: str) -> None:
        """Fill `out`, [rows, columns], with a part of the stored matrix (FORMAT.md 5.1), a piece after the other.

        It is the carrier of `dtype`, f64, f32, f16 or bf16; of a dense tensor that of its own dtype. What is read and
        decoded takes memory for some million weights, however large the tensor.
        """
        if record.tied_to is not None:
            record = self.index.by_name[record.tied_to]
        self.refuse_named(record)
        if out.size:
            with located(self.path):
                scheme_of(record.scheme).restore(
                    record, StreamFetch(self, record), rows, columns=columns, out=out, dtype=dtype
                )

    def refuse_named(self, record: TensorRecord) -> None:
        """Raise UnsupportedError for a tensor in a named scheme, before room is made for what its shape claims."""
        if record.is_named:
            with located(self.path):
                NAMED.refuse(record)

    def read_asset(self, name: str) -> bytes:
        """The bytes of an asset. KeyError when there is none of that name."""
        return b"".join(self.asset_pieces(name))

    def asset_pieces(self, name: str) -> Iterator[bytes]:
        """Those of `read_asset`, some at a time: what an asset claims to hold takes no memory."""
        stream = {asset.name: asset.stream for asset in self.index.assets}[name]
        for chunk in stream.chunks:
            with located(self.path, f"asset {name!r}", chunk):
                opened = OpenChunk(self, chunk, "u8")
                for first in range(0, chunk.n_elements, _ASSET_PIECE_BYTES):
                    out = np.empty(min(_ASSET_PIECE_BYTES, chunk.n_elements - first), np.uint8)
                    opened.read(first, out)
                    yield out.tobytes()


def _decoded(stored: bytes, raw_bytes: int) -> bytes:
    if len(stored) == raw_bytes:
        return stored
    try:
        header = zstandard.get_frame_parameters(stored)
        if header.content_size != raw_bytes:
            raise CorruptError("the index does not decode to its size")
        check_window(header)
        return zstandard.ZstdDecompressor().decompress(
            stored, max_output_size=raw_bytes, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise refused_by_zstd("index", error) from error
