"""What codecs put before the elements of a chunk, from its first bytes alone (FORMAT.md section 4)."""

from spqfmt.codecs.base import HEAD_BYTES
from spqfmt.codecs.registry import CODECS_BY_ID
from spqfmt.container.located import located
from spqfmt.container.reader import Reader
from spqfmt.errors import CorruptError
from spqfmt.records import Stream


def table_bytes(reader: Reader, stream: Stream, what: str) -> int:
    """Bytes of a stream's chunks that are no elements: headers, frequency tables, directories.

    Reads the first bytes of each encoded chunk, decodes nothing. Raises CorruptError where they make no sense.
    """
    total = 0
    for chunk in stream.chunks.coded:
        for plane in chunk.planes:
            codec = CODECS_BY_ID[plane.codec]
            if codec.feature is None or not plane.stored_bytes:
                continue
            with located(reader.path, what, chunk):
                head = reader.read_bytes(plane.offset, min(HEAD_BYTES, plane.stored_bytes))
                n_bytes = codec.overhead_bytes(head, plane.stored_bytes, plane.raw_bytes)
                if n_bytes > plane.stored_bytes:
                    raise CorruptError("a chunk is shorter than its tables", plane.offset)
            total += n_bytes
    return total
