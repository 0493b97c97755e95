"""What codecs put before the elements of a chunk, from its first bytes alone (FORMAT.md section 4)."""

from spqfmt import wire
from spqfmt.container.reader import Reader, located
from spqfmt.errors import CorruptError
from spqfmt.records import Chunk, PlaneChunk, Stream

_HEADER_BYTES = 8
_CONSTANT_BYTES = 4


def table_bytes(reader: Reader, stream: Stream, what: str) -> int:
    """Bytes of a stream's chunks that are no elements: headers, frequency tables, directories.

    Reads 8 bytes of each rans chunk, decodes nothing. Raises CorruptError where they make no sense.
    """
    total = 0
    for chunk in stream.chunks:
        for plane in chunk.planes:
            if plane.codec == wire.CODEC_ZSTD:
                total += min(plane.stored_bytes, 4 * -(-plane.raw_bytes // wire.ZSTD_FRAME_RAW_BYTES))
            elif plane.codec == wire.CODEC_RANS:
                total += _rans(reader, plane, what, chunk)
    return total


def _rans(reader: Reader, plane: PlaneChunk, what: str, chunk: Chunk) -> int:
    if plane.stored_bytes == _CONSTANT_BYTES:
        return _CONSTANT_BYTES
    with located(reader.path, what, chunk):
        head = reader.read_bytes(plane.offset, min(_HEADER_BYTES, plane.stored_bytes))
        n_table_bytes = int.from_bytes(head[6:8], "little")
        block_log2 = head[2] if len(head) == _HEADER_BYTES else 0
        n_blocks = -(-plane.raw_bytes >> block_log2)
        n_bytes = -(-(_HEADER_BYTES + n_table_bytes) // 4) * 4 + 4 * n_blocks
        if n_bytes > plane.stored_bytes:
            raise CorruptError("a chunk is shorter than its tables", plane.offset)
    return n_bytes
