"""The reference decoder of .spq: plain scalar Python that follows FORMAT.md, for people who write a reader.

    python spec/reference_decoder.py FILE        lists the restored tensors and assets with their SHA-256

It shares no code with the package, needs only the standard library and zstandard, and has its constants typed by hand.
Comments that begin with `# >` quote FORMAT.md word for word. Read it in FORMAT.md's order:

    spq_reference/numbers.py     1, 3.2   rounding, floats, planes, packed elements
    spq_reference/errors.py      1.2      kinds of error
    spq_reference/container.py   2, 3     header, trailer, digest, features, layout
    spq_reference/text.py        3        the JSON text
    spq_reference/records.py     3, 6-9   records of the index
    spq_reference/folders.py     7.1      which assets may be files in a folder
    spq_reference/codecs.py      4        raw, zstd, rans
    spq_reference/schemes.py     5        what a scheme requires of a record
    spq_reference/restore.py     5        the weights
    spq_reference/content.py     3.5      digests of what is held
    spq_reference/sources.py     7.2, 7.3 records of source files
    spq_reference/files.py       7.2, 7.3 source files made again
    spq_reference/origins.py     7.3      parts in foreign layouts: arrays.py, gguf.py
"""

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

from spq_reference import codecs
from spq_reference.container import read_container
from spq_reference.content import check_content, model_digest, tensor_digest
from spq_reference.errors import SpqRefError, Unsupported
from spq_reference.files import make_files, part_bytes
from spq_reference.folders import as_files
from spq_reference.numbers import elements
from spq_reference.records import Index, Stream, Tensor
from spq_reference.restore import Streams, restore


@dataclass(frozen=True)
class Restored:
    """A restored tensor: its elements row-major and little-endian, and its streams by role and chunk."""

    shape: tuple[int, ...]
    dtype: str
    data: bytes
    streams: Streams

    @property
    def sha256(self) -> str:
        """Digest of the restored bytes."""
        return hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True)
class Decoded:
    """All that a file holds; `refused` and `unmade` say why some tensors and source files cannot be had."""

    tensors: dict[str, Restored]
    assets: dict[str, bytes]
    files: dict[str, bytes]
    refused: dict[str, SpqRefError]
    unmade: dict[str, SpqRefError]
    content: str


def decode(data: bytes) -> Decoded:
    """Return the content of a whole file, or raise a SpqRefError."""
    index = read_container(data)
    tensors: dict[str, Restored] = {}
    refused: dict[str, SpqRefError] = {}
    digests: dict[str, bytes] = {}
    all_streams: list[Streams] = []
    for number, tensor in enumerate(index.tensors):
        streams = decode_streams(data, index, number)
        all_streams.append(streams)
        if tensor.tied_to is None:
            digests[tensor.name] = tensor_digest(tensor, streams)
        if tensor.tied_to in refused:
            refused[tensor.name] = refused[tensor.tied_to]
            continue
        try:
            restored = (
                tensors[tensor.tied_to].data if tensor.tied_to is not None else restore(tensor, streams)
            )
        except Unsupported as error:
            refused[tensor.name] = error
            continue
        tensors[tensor.name] = Restored(tuple(tensor.shape), tensor.dtype, restored, streams)
    check_content(index, digests)
    assets = {name: b"".join(map(bytes, decode_stream(data, held))) for name, held in index.assets.items()}

    def part(number: int, part_number: int) -> bytes:
        tensor = index.tensors[number]
        known = tensors[tensor.name].data if tensor.name in tensors else None
        return part_bytes(tensor, part_number, known, all_streams[number])

    files, unmade = make_files(index, assets, part)
    if index.sources is not None and index.sources.literals is not None:
        # > That asset is no file of the model, and a reader does not write it.
        del assets[index.sources.literals]
    return Decoded(tensors, assets, files, refused, unmade, model_digest(index, digests))


def decode_streams(data: bytes, index: Index, number: int) -> Streams:
    """Return the elements of all streams of a tensor, shared ones from the tensor that holds them."""
    tensor: Tensor = index.tensors[number]
    found: Streams = {}
    for role, stream in tensor.streams.items():
        holder = stream if stream.same_as is None else index.tensors[stream.same_as].streams[role]
        found[role] = decode_stream(data, holder)
    return found


def decode_stream(data: bytes, stream: Stream) -> list[list[int]]:
    """Return the elements of a stream, for each chunk a list."""
    found = []
    for n, planes in stream.chunks:
        raw = []
        for plane in planes:
            stored = data[plane.offset : plane.offset + plane.stored_bytes]
            raw.append(codecs.decode(plane.codec, stored, plane.raw_bytes))
        found.append(elements(stream.dtype, raw, n))
    return found


def main(arguments: list[str]) -> int:
    """List a file; return the exit code."""
    if len(arguments) != 1:
        print("usage: python spec/reference_decoder.py FILE", file=sys.stderr)
        return 2
    try:
        decoded = decode(Path(arguments[0]).read_bytes())
    except SpqRefError as error:
        print(f"{arguments[0]}: {error.kind}: {error}", file=sys.stderr)
        return 1
    for name, tensor in decoded.tensors.items():
        print(f"{tensor.sha256}  {tensor.dtype}{list(tensor.shape)}  {name}")
    kinds = as_files(list(decoded.assets))
    for name, asset in decoded.assets.items():
        print(f"{hashlib.sha256(asset).hexdigest()}  asset, {kinds.get(name, 'never a file')}  {name}")
    for name, file in decoded.files.items():
        print(f"{hashlib.sha256(file).hexdigest()}  source file  {name}")
    for name, reason in (decoded.refused | decoded.unmade).items():
        print(f"{reason.kind}  {name}: {reason}")
    print(f"{decoded.content}  content")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
