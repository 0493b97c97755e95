"""Files of tensors that a test has encoded itself, with chunks of a size of its choice."""

from pathlib import Path
from typing import Any

from spqfmt.codecs.chunks import EncodedChunk, chunk_sizes, split
from spqfmt.container.encode import encode_chunk
from spqfmt.container.writer import Writer
from spqfmt.records import TensorRecord
from spqfmt.schemes.base import Encoded, StreamData
from spqfmt.wire import DTYPES


def write_encoded(
    path: Path,
    tensors: dict[str, tuple[Encoded, tuple[int, ...]]],
    chunk_bytes: int,
    codec: str = "auto",
    *,
    chunks_as_they_are: bool = False,
    **extra: Any,
) -> Path:
    """Write them in one segment, as bf16, their codes in chunks of about `chunk_bytes`; `extra` is of each record.

    `chunks_as_they_are`: in those that they have.
    """
    with Writer(path, 64, force=True) as writer:
        writer.begin_segment("all")
        for name, (encoded, shape) in tensors.items():
            record = TensorRecord(
                name=name,
                shape=shape,
                dtype="bf16",
                scheme=encoded.scheme,
                parameters=encoded.parameters,
                streams=tuple(stream.record for stream in encoded.streams),
                **extra,
            )
            writer.add_tensor(
                record,
                [
                    [encode_chunk(part, stream.dtype, codec) for part in stream.chunks()]
                    if chunks_as_they_are
                    else _chunks(stream, chunk_bytes, codec)
                    for stream in encoded.streams
                ],
            )
        writer.seal({})
        writer.publish()
    return path


def _chunks(stream: StreamData, chunk_bytes: int, codec: str) -> list[EncodedChunk]:
    sizes = stream.sizes
    if sizes is None or stream.role == "codes":
        bits = DTYPES[stream.dtype].bits
        sizes = tuple(chunk_sizes(stream.elements.size, bits, stream.row_elements, chunk_bytes))
    return [encode_chunk(part, stream.dtype, codec) for part in split(stream.elements, sizes)]
