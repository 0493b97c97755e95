"""Whole streams at once: the chunks of many, over all threads.

There is no read-ahead of our own: the system's, with some threads reading while others decode, is as fast as a reading
thread or posix_fadvise (decision 0015).
"""

from collections.abc import Sequence
from typing import NamedTuple

from spqfmt.codecs.base import Bytes
from spqfmt.codecs.threads import side_by_side
from spqfmt.container.reader import Reader, located
from spqfmt.records import Chunk, Stream


class WantedStream(NamedTuple):
    """A stream that a tensor stores itself, and uint8 memory of stream.raw_bytes for its elements, packed."""

    name: str
    stream: Stream
    out: Bytes


def read_streams(reader: Reader, wanted: Sequence[WantedStream]) -> None:
    """Decode whole streams into the caller's memory, elements packed as by Reader.read_packed.

    Each chunk is read, checked and decoded by one thread while its bytes are in that processor's cache. Raises
    FormatError that names tensor and chunk, OSError; ValueError for memory of another size.
    """

    def read(job: tuple[str, str, Chunk, Bytes]) -> None:
        name, dtype, chunk, out = job
        with located(reader.path, name, chunk):
            reader.read_packed(chunk, dtype, out)

    jobs = []
    for name, stream, out in wanted:
        if out.size != stream.raw_bytes:
            raise ValueError(f"{name} takes {stream.raw_bytes} bytes, not {out.size}")
        at = 0
        for chunk in stream.chunks:
            size = sum(plane.raw_bytes for plane in chunk.planes)
            jobs.append((name, stream.dtype, chunk, out[at : at + size]))
            at += size
    side_by_side(read, jobs)
