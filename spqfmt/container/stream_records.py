"""Stream and chunk records, and the places in the file that follow from them (FORMAT.md 2.3, 3.2 and 3.3)."""

from array import array
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from math import ceil
from typing import TypeAlias

import numpy as np

from spqfmt import wire
from spqfmt.codecs.chunks import EncodedChunk, EncodedPlane
from spqfmt.codecs.registry import CODECS_BY_ID
from spqfmt.container.alignment import align
from spqfmt.container.strict_json import Json, integers, member, optional
from spqfmt.errors import CorruptError, FormatError
from spqfmt.kernels.json_text import Wanted, chunk_table
from spqfmt.records import Chunks, Stream, chunk_raw_bytes, n_planes
from spqfmt.schemes.base import check_int
from spqfmt.schemes.outliers import ROLES as OUTLIER_ROLES

STREAM: Wanted = {
    "role": "scalar",
    "dtype": "scalar",
    "n": "scalar",
    "same_as": "scalar",
    "chunks": "rows",
    "entropy_bits": "integers",
}
"""What is read of a stream record."""

_OWN_ROLES = ("values", "codes", "asset", *OUTLIER_ROLES)

Put: TypeAlias = Callable[[EncodedPlane, int], tuple[int, EncodedPlane]]
"""Stores a plane that decodes to so many bytes; gives the place in the file, and what is stored there."""


def parse_streams(
    records: Sequence[Json],
    begin: int,
    alignment: int,
    where: str,
    may_be_empty: Collection[str] = OUTLIER_ROLES,
) -> tuple[Stream, ...]:
    """Some stream records; their chunks lie one after the other from `begin` on. `same_as` is not followed.

    Streams of the roles `may_be_empty` may have empty chunks.
    """
    streams = []
    for record in records:
        streams.append(_stream(record, begin, alignment, where=where, may_be_empty=may_be_empty))
        begin = align(streams[-1].chunks.end or begin, alignment)
    return tuple(streams)


def stream_json(stream: Stream, like: Mapping[str, object]) -> Json:
    """The record as it stands in an index. `like` is one of the same elements, whose other keys are kept."""
    record: Json = {"role": stream.role, "dtype": stream.dtype, "n": stream.n}
    if stream.entropy_bits is not None:
        record["entropy_bits"] = list(stream.entropy_bits)
    record |= {key: value for key, value in like.items() if key not in ("chunks", "same_as")}
    if stream.same_as is not None:
        return record | {"same_as": stream.same_as}
    return record | {"chunks": stream.chunks.to_json()}


def store_stream(stream: Stream, chunks: Iterable[EncodedChunk], put: Put) -> Stream:
    """The stream with these chunks, whose planes `put` stores one after the other."""
    planes = n_planes(stream.dtype)
    rows, table = array("q"), array("q")
    entropies = [array("d") for _ in range(planes)]
    n_chunks = first = 0
    for chunk in chunks:
        raw_bytes = chunk_raw_bytes(stream.dtype, chunk.n_elements)
        rows.append(chunk.n_elements)
        table.extend((first, raw_bytes))
        for encoded, known in zip(chunk.planes, entropies, strict=True):
            offset, plane = put(encoded, raw_bytes)
            table.append(offset)
            rows.extend((len(plane.stored), plane.codec, plane.crc32))
            if plane.entropy_bits is not None:
                known.append(plane.entropy_bits)
        n_chunks += 1
        first += chunk.n_elements
    # Of copied chunks the record of their stream says what is known.
    totals = tuple(ceil(sum(known)) for known in entropies if n_chunks and len(known) == n_chunks)
    stored = Chunks(
        np.array(rows, np.int64).reshape(-1, 1 + 3 * planes),
        np.array(table, np.int64).reshape(-1, 2 + planes),
    )
    return replace(stream, chunks=stored, entropy_bits=totals or stream.entropy_bits)


def _stream(record: Json, begin: int, alignment: int, where: str, may_be_empty: Collection[str]) -> Stream:
    role = member(record, "role", str, where)
    where = f"{where}: {role}"
    dtype = member(record, "dtype", str, where)
    if dtype not in wire.DTYPES:
        raise CorruptError(f"{where}: unknown dtype {dtype!r}")
    n = member(record, "n", int, where)
    same_as = optional(record, "same_as", int, where)
    if same_as is not None:
        if "chunks" in record or "entropy_bits" in record or role in _OWN_ROLES:
            raise CorruptError(f"{where}: cannot be the stream of another tensor")
        return Stream(role, dtype, n, same_as=same_as)
    empty = role in may_be_empty
    chunks = _chunks(
        record.get("chunks"), dtype, n, begin=begin, alignment=alignment, where=where, may_be_empty=empty
    )
    entropy = record.get("entropy_bits")
    if entropy is None and "entropy_bits" not in record:
        return Stream(role, dtype, n, chunks)
    if not isinstance(entropy, bytes) or len(entropy) != 8 * n_planes(dtype):
        raise CorruptError(f"{where}: entropy_bits must have one number for each plane")
    bits = tuple(integers(entropy))
    check_int(min(bits), f"{where}: entropy_bits")
    return Stream(role=role, dtype=dtype, n=n, chunks=chunks, entropy_bits=bits)


def check_shared(stream: Stream, holder: Json, where: str) -> None:
    """`same_as` must name a record that holds a stream of the same role, dtype and n itself."""
    held = holder.get("streams")
    for other in held if isinstance(held, list) else ():
        if isinstance(other, dict) and other.get("role") == stream.role and "same_as" not in other:
            n = other.get("n")
            if other.get("dtype") == stream.dtype and type(n) is int and n == stream.n:
                return
    raise CorruptError(f"{where}: {stream.role}: tensor {stream.same_as} does not hold that stream")


def _chunks(
    found: object, dtype: str, n: int, begin: int, alignment: int, where: str, *, may_be_empty: bool
) -> Chunks:
    width = 1 + 3 * n_planes(dtype)
    if not isinstance(found, tuple):
        raise CorruptError(f"{where}: chunks is missing, or not a list of lists of integers")
    rows = np.frombuffer(found[0], np.int64).reshape(-1, found[1] or width)
    if rows.shape[1] != width:
        raise CorruptError(f"{where}: a chunk is not a list of {width} integers")
    try:
        held, table = chunk_table(rows, wire.DTYPES[dtype].bits, begin, alignment, may_be_empty=may_be_empty)
    except FormatError as error:
        error.args = (f"{where}: {error}",)
        raise
    codecs = rows[:, 2::3]
    if not CODECS_BY_ID.keys() >= set(codecs.ravel().tolist()):
        chunk = (~np.isin(codecs, list(CODECS_BY_ID)).all(1)).argmax()
        raise CorruptError(f"{where}: chunk {chunk} has an unknown codec")
    if held != n:
        raise CorruptError(f"{where}: chunks hold {held} elements, not {n}")
    return Chunks(rows, table)
