"""Checks a whole file: every byte, every checksum, every rule that the index alone cannot show."""

import os
from collections.abc import Mapping

from spqfmt import wire
from spqfmt.codecs.tasks import side_by_side
from spqfmt.container.reader import Reader, located
from spqfmt.container.shards import open_readers
from spqfmt.errors import CorruptError
from spqfmt.progress import Progress, Silent
from spqfmt.records import Chunk, Stream


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
    index = reader.index
    for segment in index.segments:
        tensors = index.tensors_of(segment)
        streams = {f"tensor {t.name!r}, {s.role}": s for t in tensors for s in t.streams}
        _check_chunks(reader, streams)
        for tensor in tensors:
            reader.check_elements(tensor)
        progress.advance(segment.end - segment.offset, segment.name)
    _check_chunks(reader, {f"asset {asset.name!r}": asset.stream for asset in index.assets})
    with located(reader.path):
        _check_padding(reader)


def _check_chunks(reader: Reader, streams: Mapping[str, Stream]) -> None:
    def check(job: tuple[str, str, Chunk]) -> None:
        what, dtype, chunk = job
        with located(reader.path, what, chunk):
            reader.check_chunk(chunk, dtype)

    side_by_side(check, [(what, s.dtype, chunk) for what, s in streams.items() for chunk in s.chunks])


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
