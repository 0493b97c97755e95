"""FORMAT.md 7.2 and 7.3: source files made again from literals and parts of tensors."""

import hashlib
from collections.abc import Callable
from math import prod

from spq_reference import origins
from spq_reference.errors import Checksum, SpqRefError, Unsupported, require, within
from spq_reference.numbers import BITS
from spq_reference.records import Index, Tensor
from spq_reference.restore import Streams
from spq_reference.sources import SourceFile


def check_files(index: Index, spq_bytes: int) -> None:
    """Check what the records say of source files, before anything is made."""
    if index.sources is None:
        return
    made = [file for file in index.sources.files if file.pieces is not None]
    # > The literals are the bytes of the asset that `literals` names; the pieces of all files use them in order, and
    # > MUST use them up.
    literals = index.sources.literals
    due = sum(piece.literal_bytes for file in made for piece in file.pieces or ())
    require(
        due == (index.assets[literals].n if literals is not None else 0), "sources: bytes of the literals"
    )
    # > In a model of several files `sources` stands in shard 1, and tensors are numbered through all shards.
    if index.is_shard:
        return
    # > The `file_bytes` of all files with pieces MUST NOT pass, together, what section 9 allows for the raw bytes
    # > of all shards.
    within(sum(file.file_bytes for file in made), 1024 * spq_bytes + 268435456, "bytes of source files")
    for file in made:
        for piece in file.pieces or ():
            number = 0 if piece.tensor is None else piece.tensor
            require(piece.tensor is None or number < len(index.tensors), f"{file.name}: no tensor {number}")
        lengths = [piece_bytes(index, piece.tensor, piece.part, piece.n) for piece in file.pieces or ()]
        if None not in lengths:
            # > The lengths of a file's pieces MUST add up to `file_bytes`.
            total = sum(n or 0 for n in lengths) + sum(piece.literal_bytes for piece in file.pieces or ())
            require(total == file.file_bytes, f"{file.name}: the pieces do not add up to file_bytes")


def piece_bytes(index: Index, number: int | None, part: int, n: int | None) -> int | None:
    """Return how many bytes a piece takes from a tensor; None where only making its part tells."""
    if number is None:
        return 0
    tensor = index.tensors[number]
    if tensor.origin is not None:
        return n
    # > Without `origin` part 0 is the restored tensor: its elements in row-major order, little-endian, those below 8
    # > bits packed as in one chunk.
    require(part == 0, f"{tensor.name}: no part {part}")
    whole = -(-prod(tensor.shape) * BITS[tensor.dtype] // 8)
    return whole if n is None else n


def part_bytes(tensor: Tensor, part: int, restored: bytes | None, streams: Streams) -> bytes:
    """Return a part of a tensor; `restored` are its elements, None where its scheme is not known."""
    if tensor.origin is None:
        require(part == 0, f"{tensor.name}: no part {part}")
        if restored is None:
            raise Unsupported(f"{tensor.name}: scheme {tensor.scheme}")
        return restored
    parts = origins.parts(tensor, streams)
    require(part < len(parts), f"{tensor.name}: no part {part}")
    return parts[part]


def make_file(file: SourceFile, literals: bytes, part: Callable[[int, int], bytes]) -> tuple[bytes, bytes]:
    """Return the bytes of a file with pieces, and the literals that it left; `part` gives a tensor's parts."""
    # > A file is its pieces, one after the other.
    data = b""
    for piece in file.pieces or ():
        data += literals[: piece.literal_bytes]
        literals = literals[piece.literal_bytes :]
        if piece.tensor is not None:
            whole = part(piece.tensor, piece.part)
            n = len(whole) if piece.n is None else piece.n
            require(piece.first + n <= len(whole), f"{file.name}: a piece past its part")
            data += whole[piece.first : piece.first + n]
    # > A reader that makes a file MUST check its length before it writes, and then its digest; another digest is
    # > *checksum*, and the file is not kept.
    require(len(data) == file.file_bytes, f"{file.name}: {len(data)} bytes, {file.file_bytes} are due")
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise Checksum(f"{file.name}: the digest does not match")
    return data, literals


def make_files(
    index: Index, assets: dict[str, bytes], part: Callable[[int, int], bytes]
) -> tuple[dict[str, bytes], dict[str, SpqRefError]]:
    """Return the source files that can be made, and why others cannot."""
    found: dict[str, bytes] = {}
    missing: dict[str, SpqRefError] = {}
    if index.sources is None or index.is_shard:
        return found, missing
    literals = b"" if index.sources.literals is None else assets[index.sources.literals]
    for file in index.sources.files:
        if file.pieces is None:
            # > A file without `pieces` is the asset of its name, where that has its length and digest; otherwise it was
            # > left out, or changed.
            asset = assets.get(file.name)
            if asset is not None and (len(asset), hashlib.sha256(asset).hexdigest()) == (
                file.file_bytes,
                file.sha256,
            ):
                found[file.name] = asset
            continue
        try:
            found[file.name], literals = make_file(file, literals, part)
        except Unsupported as error:
            # > A reader that does not know a layout reads the tensor nevertheless; only the files that need its parts
            # > are *unsupported*.
            missing[file.name] = error
            literals = literals[sum(piece.literal_bytes for piece in file.pieces) :]
    return found, missing
