"""Stream and chunk records, and the places in the file that follow from them (FORMAT.md 2.3, 3.2 and 3.3)."""

from spqfmt import wire
from spqfmt.container.strict_json import Json, member, optional
from spqfmt.errors import CorruptError, LimitError
from spqfmt.records import Chunk, PlaneChunk, Stream, TensorRecord, align, chunk_raw_bytes, n_planes
from spqfmt.schemes.base import check_int
from spqfmt.schemes.outliers import ROLES as OUTLIER_ROLES

_OWN_ROLES = ("values", "codes", "asset", *OUTLIER_ROLES)


class Walk:
    """Goes through the index in order: the tensors so far, and where the next chunk lies."""

    def __init__(self) -> None:
        self.offset = wire.HEADER_BYTES
        self.raw_bytes = 0
        self.tensors: list[TensorRecord] = []
        self.by_name: dict[str, TensorRecord] = {}

    def add(self, tensor: TensorRecord) -> None:
        """A tensor that later ones may refer to."""
        self.tensors.append(tensor)
        self.by_name[tensor.name] = tensor

    def place(self, stored_bytes: int, raw_bytes: int, codec: int, crc32: int) -> PlaneChunk:
        """The next chunk plane."""
        offset = align(self.offset, wire.CHUNK_ALIGNMENT)
        self.offset = offset + stored_bytes
        self.raw_bytes += raw_bytes
        return PlaneChunk(offset, stored_bytes, raw_bytes, codec, crc32)


def parse_stream(record: Json, walk: Walk, where: str) -> Stream:
    """One stream record; its chunks take their places in the file."""
    role = member(record, "role", str, where)
    where = f"{where}: {role}"
    dtype = member(record, "dtype", str, where)
    if dtype not in wire.DTYPES:
        raise CorruptError(f"{where}: unknown dtype {dtype!r}")
    n = member(record, "n", int, where)
    same_as = optional(record, "same_as", int, where)
    if same_as is not None:
        return _shared(Stream(role, dtype, n, (), None, same_as), record, walk, where)
    chunks = _chunks(member(record, "chunks", list, where), role, dtype, n, walk, where)
    entropy = optional(record, "entropy_bits", list, where)
    if entropy is not None and len(entropy) != n_planes(dtype):
        raise CorruptError(f"{where}: entropy_bits must have one number for each plane")
    bits = None if entropy is None else tuple(check_int(b, f"{where}: entropy_bits") for b in entropy)
    return Stream(role, dtype, n, chunks, bits)


def _shared(stream: Stream, record: Json, walk: Walk, where: str) -> Stream:
    assert stream.same_as is not None
    if "chunks" in record or "entropy_bits" in record or stream.role in _OWN_ROLES:
        raise CorruptError(f"{where}: cannot be the stream of another tensor")
    if stream.same_as >= len(walk.tensors):
        raise CorruptError(f"{where}: same_as {stream.same_as} is not an earlier tensor")
    holder = walk.tensors[stream.same_as].by_role.get(stream.role)
    if holder is None or holder.same_as is not None or (holder.dtype, holder.n) != (stream.dtype, stream.n):
        raise CorruptError(f"{where}: tensor {stream.same_as} does not hold that stream")
    return stream


def _chunks(
    records: list[object], role: str, dtype: str, n: int, walk: Walk, where: str
) -> tuple[Chunk, ...]:
    chunks, first, planes = [], 0, n_planes(dtype)
    for number, record in enumerate(records):
        if not isinstance(record, list) or len(record) != 1 + 3 * planes:
            raise CorruptError(f"{where}: chunk {number} is not a list of {1 + 3 * planes} integers")
        for value in record:
            check_int(value, f"{where}: chunk {number}")
        elements = record[0]
        raw_bytes = chunk_raw_bytes(dtype, elements)
        if raw_bytes > wire.MAX_CHUNK_RAW_BYTES:
            raise LimitError(f"{where}: chunk {number} has {raw_bytes} raw bytes")
        if number + 1 < len(records) and elements * wire.DTYPES[dtype].bits % 8:
            raise CorruptError(f"{where}: chunk {number} does not end at a whole byte")
        if elements == 0 and (role not in OUTLIER_ROLES or any(record)):
            raise CorruptError(f"{where}: chunk {number} is empty")
        placed = tuple(
            walk.place(record[i], raw_bytes, _codec(record, i, raw_bytes, where), record[i + 2])
            for i in range(1, 1 + 3 * planes, 3)
        )
        chunks.append(Chunk(first, elements, placed))
        first += elements
    if first != n:
        raise CorruptError(f"{where}: chunks hold {first} elements, not {n}")
    return tuple(chunks)


def _codec(record: list[int], at: int, raw_bytes: int, where: str) -> int:
    stored_bytes, codec, crc32 = record[at : at + 3]
    if codec not in wire.CODECS.values():
        raise CorruptError(f"{where}: unknown codec {codec}")
    if crc32 >> 32:
        raise CorruptError(f"{where}: crc32 has more than 32 bits")
    if codec == wire.CODEC_RAW and stored_bytes != raw_bytes:
        raise CorruptError(f"{where}: a raw chunk has {stored_bytes} bytes instead of {raw_bytes}")
    return codec
