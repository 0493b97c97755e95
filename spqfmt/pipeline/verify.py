"""Checks a whole file: every byte, every checksum, every rule that the index alone cannot show."""

import os

import numpy as np

from spqfmt import wire
from spqfmt.codecs.elements import CARRIERS, Elements
from spqfmt.codecs.threads import side_by_side
from spqfmt.container.reader import Reader, located
from spqfmt.container.shards import open_readers
from spqfmt.errors import CorruptError
from spqfmt.pipeline.progress import Progress, Silent
from spqfmt.records import Chunk, Stream
from spqfmt.schemes.registry import SCHEMES


def verify_file(path: str | os.PathLike[str], progress: Progress | None = None) -> None:
    """Raise the FormatError that fits if anything in the file (or its shards) is not as FORMAT.md has it."""
    readers = open_readers(path)
    try:
        with progress or Silent() as shown:
            shown.start(sum(reader.file_bytes for reader in readers))
            for reader in readers:
                _verify_file(reader, shown)
    finally:
        for reader in readers:
            reader.close()


def _verify_file(reader: Reader, progress: Progress) -> None:
    for tensor in reader.index.tensors:
        for stream in tensor.streams:
            _decode(reader, stream, f"tensor {tensor.name!r}, {stream.role}")
        if tensor.tied_to is None:
            _verify_elements(reader, tensor.name)
        progress.advance(sum(stream.stored_bytes for stream in tensor.streams), tensor.name)
    for asset in reader.index.assets:
        _decode(reader, asset.stream, f"asset {asset.name!r}")
    with located(reader.path):
        _check_padding(reader)


def _verify_elements(reader: Reader, name: str) -> None:
    record = reader.index.by_name[name]

    def fetch(role: str, first: int = 0, stop: int | None = None) -> Elements:
        return reader.read_elements(record, role, first, stop)

    with located(reader.path):
        SCHEMES[record.scheme].verify(record, fetch)


def _decode(reader: Reader, stream: Stream, what: str) -> None:
    def decode(chunk: Chunk) -> None:
        with located(reader.path, what, chunk):
            reader.read_chunk(chunk, stream.dtype, np.empty(chunk.n_elements, CARRIERS[stream.dtype]))

    side_by_side(decode, stream.chunks)


def _check_padding(reader: Reader) -> None:
    index = reader.index
    streams = [stream for tensor in index.tensors for stream in tensor.streams]
    streams += [asset.stream for asset in index.assets]
    end = wire.HEADER_BYTES
    for plane in (p for s in streams for chunk in s.chunks for p in chunk.planes):
        if plane.offset > end and any(reader.read_bytes(end, plane.offset - end)):
            raise CorruptError("padding is not zero", end)
        end = plane.offset + plane.stored_bytes
    if any(reader.read_bytes(end, reader.trailer.index_offset - end)):
        raise CorruptError("padding is not zero", end)
