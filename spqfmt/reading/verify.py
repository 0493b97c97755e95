"""Checks a whole file: every byte, every checksum, every rule that the index alone cannot show."""

import os
from typing import NamedTuple

from spqfmt import wire
from spqfmt.container.content import content_of_model, content_of_stored
from spqfmt.container.fetch import each_chunk
from spqfmt.container.located import located
from spqfmt.container.model import OpenModel, open_model
from spqfmt.container.reader import Reader
from spqfmt.errors import ChecksumError, CorruptError
from spqfmt.progress import Progress, Silent
from spqfmt.reading.source_files import SourceFiles
from spqfmt.records import Chunk, Stream, TensorRecord

_AT_ONCE = 4096


def verify_file(
    path: str | os.PathLike[str], progress: Progress | None = None, *, content: bool = False
) -> str | None:
    """Raise the FormatError that fits if anything in the file (or its shards) is not as FORMAT.md has it.

    With `content` the digests of what the tensors hold are made again and compared with those that the file gives,
    and the source's files are made again and compared with theirs. The model's digest is returned, in hex, whether
    the file gives any or not. Of one shard alone only its tensors' are compared, and None is returned, as it is
    without `content`.
    """
    with open_model(path) as model, progress or Silent() as shown:
        shown.start(sum(reader.file_bytes for reader in model.readers) * (2 if content else 1))
        for reader in model.readers:
            _verify_file(reader, shown)
        if model.is_whole:
            SourceFiles(model, with_code=True).check()
        if not content:
            return None
        if model.is_whole:
            SourceFiles(model, with_code=True).check_digests()
        return _verify_content(model, shown)


def _verify_file(reader: Reader, progress: Progress) -> None:
    index = reader.index
    checks = _Checks(reader)
    for segment in index.segments:
        for tensor in index.tensors_of(segment):
            checks.add_tensor(tensor)
        checks.finish()
        progress.advance(segment.end - segment.offset, segment.name)
    for asset in index.assets:
        checks.add(f"asset {asset.name!r}", asset.stream)
    checks.finish()
    checks.padding(reader.trailer.index_offset)


def _verify_content(model: OpenModel, progress: Progress) -> str | None:
    digests: dict[str, str] = {}
    tied: dict[str, str] = {}
    for reader, segment in model.segments():
        for tensor in reader.index.tensors_of(segment):
            if tensor.tied_to is not None:
                tied[tensor.name] = tensor.tied_to
                continue
            digests[tensor.name] = content_of_stored(reader, tensor)
            if tensor.content not in (None, digests[tensor.name]):
                with located(reader.path):
                    raise ChecksumError(
                        f"tensor {tensor.name!r}: what it holds does not match its content digest"
                    )
        progress.advance(segment.end - segment.offset, segment.name)
    if not model.is_whole:
        return None
    found = content_of_model(digests, tied)
    for reader in model.readers:
        if reader.index.content not in (None, found):
            with located(reader.path):
                raise ChecksumError("the model does not match its content digest")
    return found


class _Due(NamedTuple):
    """A chunk to be checked, and the padding before its planes: of an address, both come with one read."""

    what: str
    dtype: str
    chunk: Chunk
    padding: tuple[range, ...]


class _Checks:
    """Checks chunks in the order of the file, some at once, and the bytes between them."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._chunks: list[_Due] = []
        self._tensors: list[TensorRecord] = []
        self._end = wire.HEADER_BYTES

    def add_tensor(self, tensor: TensorRecord) -> None:
        """All that belongs to a tensor."""
        for stream in tensor.streams:
            self.add(f"tensor {tensor.name!r}, {stream.role}", stream)
        if tensor.streams:
            self._tensors.append(tensor)
        if len(self._tensors) >= _AT_ONCE:
            self.finish()

    def add(self, what: str, stream: Stream) -> None:
        """A stream's chunks, and the padding before each; nothing is stored of empty ones."""
        for chunk in stream.chunks.held:
            padding = []
            for plane in chunk.planes:
                padding.append(range(self._end, plane.offset))
                self._end = plane.offset + plane.stored_bytes
            self._chunks.append(_Due(what, stream.dtype, chunk, tuple(padding)))
            if len(self._chunks) >= _AT_ONCE:
                self._check_chunks()

    def padding(self, stop: int) -> None:
        """Check the padding from the end of the last plane up to `stop`."""
        self._check_padding(range(self._end, stop))

    def _check_padding(self, place: range) -> None:
        if len(place) and any(self._reader.read_bytes(place.start, len(place))):
            with located(self._reader.path):
                raise CorruptError("padding is not zero", place.start)

    def finish(self) -> None:
        """What is left of the chunks, and what only all streams of a tensor show."""
        self._check_chunks()
        for tensor in self._tensors:
            self._reader.check_elements(tensor)
        self._tensors = []

    def _check_chunks(self) -> None:
        def check(due: _Due) -> None:
            for place in due.padding:
                self._check_padding(place)
            with located(self._reader.path, due.what, due.chunk):
                self._reader.check_chunk(due.chunk, due.dtype)

        each_chunk(self._reader, check, self._chunks)
        self._chunks = []
