"""Stream and chunk records, and the places in the file that follow from them (FORMAT.md 2.3, 3.2 and 3.3)."""

from collections.abc import Sequence

import numpy as np

from spqfmt import wire
from spqfmt.container.strict_json import Json, dump, integers, member, optional
from spqfmt.errors import CorruptError, FormatError
from spqfmt.kernels.json_text import Wanted, chunk_table, project_json
from spqfmt.records import Chunks, Stream, align, n_planes
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


def parse_streams(records: Sequence[Json], begin: int, where: str) -> tuple[Stream, ...]:
    """Some stream records; their chunks lie one after the other from `begin` on. `same_as` is not followed."""
    streams = []
    for record in records:
        streams.append(_stream(record, begin, where))
        begin = align(streams[-1].chunks.end or begin, wire.CHUNK_ALIGNMENT)
    return tuple(streams)


def streams_of(record: Json, where: str) -> tuple[Stream, ...]:
    """Those of a tensor's record as a writer has it; their places in the file mean nothing."""
    text = dump({"streams": record["streams"]})
    found = project_json(text, 0, len(text), {"streams": (len(text), STREAM)})
    assert isinstance(found, dict)
    return parse_streams(found["streams"], 0, where)


def _stream(record: Json, begin: int, where: str) -> Stream:
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
    chunks = _chunks(record.get("chunks"), role, dtype, n, begin, where)
    entropy = record.get("entropy_bits")
    if entropy is None and "entropy_bits" not in record:
        return Stream(role, dtype, n, chunks)
    if not isinstance(entropy, bytes) or len(entropy) != 8 * n_planes(dtype):
        raise CorruptError(f"{where}: entropy_bits must have one number for each plane")
    bits = tuple(check_int(b, f"{where}: entropy_bits") for b in integers(entropy))
    return Stream(role, dtype, n, chunks, bits)


def check_shared(stream: Stream, holder: Json, where: str) -> None:
    """`same_as` must name a record that holds a stream of the same role, dtype and n itself."""
    held = holder.get("streams")
    for other in held if isinstance(held, list) else ():
        if isinstance(other, dict) and other.get("role") == stream.role and "same_as" not in other:
            n = other.get("n")
            if other.get("dtype") == stream.dtype and type(n) is int and n == stream.n:
                return
    raise CorruptError(f"{where}: {stream.role}: tensor {stream.same_as} does not hold that stream")


def _chunks(found: object, role: str, dtype: str, n: int, begin: int, where: str) -> Chunks:
    width = 1 + 3 * n_planes(dtype)
    if not isinstance(found, tuple):
        raise CorruptError(f"{where}: chunks is missing, or not a list of lists of integers")
    rows = np.frombuffer(found[0], np.int64).reshape(-1, found[1] or width)
    if rows.shape[1] != width:
        raise CorruptError(f"{where}: a chunk is not a list of {width} integers")
    try:
        held, table = chunk_table(rows, wire.DTYPES[dtype].bits, begin, may_be_empty=role in OUTLIER_ROLES)
    except FormatError as error:
        error.args = (f"{where}: {error}",)
        raise
    if held != n:
        raise CorruptError(f"{where}: chunks hold {held} elements, not {n}")
    return Chunks(rows, table)
