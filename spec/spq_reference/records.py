"""FORMAT.md 3, 6 to 9: the records of the index, checked, before anything that they describe is touched."""

import re
from dataclasses import dataclass, field
from math import inf, prod

from spq_reference.codecs import RANS, RAW, ZSTD
from spq_reference.errors import require, within
from spq_reference.numbers import BITS, float_from_bits, n_planes
from spq_reference.sources import Sources, check_path, read_origin, read_sources
from spq_reference.text import LARGEST, Object, array, hex_digest, integer, mapping, string, word

OUTLIER_ROLES = ("outlier_gaps", "outlier_values")

# > `maker.name/version`: at least two parts of the characters `a-z 0-9 _ -`, separated by `.`, then `/` and a version,
# > 1 to 9999 in decimal without a leading zero.
NAMED_SCHEME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)+/[1-9][0-9]{0,3}")

# > `small_floats` stands for a tensor or stream of dtype f8_e8m0, f8_e4m3fnuz, f8_e5m2fnuz, f6_e2m3, f6_e3m2 or
# > f4_e2m1, and for a stream of dtype f8_e4m3 or f8_e5m2 with another role than `values`; `complex` for a tensor or
# > stream of dtype c64;
FEATURE_OF_DTYPE = {
    **dict.fromkeys(
        ("f8_e8m0", "f8_e4m3fnuz", "f8_e5m2fnuz", "f6_e2m3", "f6_e3m2", "f4_e2m1"), "small_floats"
    ),
    "c64": "complex",
}


@dataclass
class Plane:
    """One plane of one chunk; `offset` is known after the layout is walked."""

    raw_bytes: int
    stored_bytes: int
    codec: int
    crc32: int
    offset: int = 0


@dataclass
class Stream:
    """A stream record. `chunks` holds for each chunk its number of elements and its planes."""

    role: str
    dtype: str
    n: int
    chunks: list[tuple[int, list[Plane]]] = field(default_factory=list)
    same_as: int | None = None


@dataclass
class Tensor:
    """A tensor record. `streams` is by role, in the order of the file."""

    name: str
    shape: list[int]
    dtype: str
    scheme: str
    parameters: Object
    streams: dict[str, Stream]
    transposed: bool
    view: list[int] | None = None
    activations: Object = field(default_factory=dict)
    content: str | None = None
    origin: Object | None = None
    tied_to: str | None = None

    @property
    def is_named(self) -> bool:
        """Whether the scheme is another maker's (5.8)."""
        return "/" in self.scheme


@dataclass
class Index:
    """The whole index, and the required features that it uses."""

    segment_alignment: int
    chunk_alignment: int
    segments: list[int]
    tensors: list[Tensor]
    assets: dict[str, Stream]
    content: str | None
    sources: Sources | None
    is_shard: bool
    used: set[str]


def read_index(record: Object) -> Index:
    """Return the records of the index."""
    used: set[str] = set()
    # > | `segment_alignment` | 64 or 4096 |
    alignment = integer(record.get("segment_alignment"))
    require(alignment in (64, 4096), "segment_alignment is neither 64 nor 4096")
    chunk_alignment = 64
    if "chunk_alignment" in record:
        # > | `chunk_alignment` | optional: 64 or 4096; 64 where it is left out |
        used.add("chunk_alignment")
        chunk_alignment = integer(record["chunk_alignment"])
        require(chunk_alignment in (64, 4096), "chunk_alignment is neither 64 nor 4096")
        # > `chunk_alignment` MUST NOT be more than `segment_alignment`.
        require(chunk_alignment <= alignment, "chunk_alignment is more than segment_alignment")
    within(len(array(record.get("tensors"))), 1048576, "tensors")
    tensors: list[Tensor] = []
    by_name: dict[str, Tensor] = {}
    for value in array(record.get("tensors")):
        tensors.append(read_tensor(mapping(value), tensors, by_name, used))
        by_name[tensors[-1].name] = tensors[-1]
    # > `n_tensors` is at least 1; the sum MUST equal the number of tensors
    segments = []
    within(len(array(record.get("segments"))), 1048576, "segments")
    for value in array(record.get("segments")):
        # > a name has at most 1024 bytes of UTF-8;
        within(len(plain_name(mapping(value)).encode()), 1024, "bytes of a segment's name")
        segments.append(integer(mapping(value).get("n_tensors"), 1))
    require(sum(segments) == len(tensors), "the segments do not hold all tensors")
    # > | `metadata` | object of strings; informative |
    for value in mapping(record.get("metadata")).values():
        string(value)
    # > `partial_plan` records how the packer chose the chunks to compress; it is informative, since each chunk carries
    # > its codec.
    if "partial_plan" in record:
        # > No other rule is allowed; N is at least 1.
        plan = mapping(record["partial_plan"])
        if word(plan.get("rule"), ("every", "speed")) == "every":
            integer(plan.get("n"), 1)
        else:
            integer(plan.get("target_bytes"))
    n_shards = 1
    if "shard" in record:
        # > each file is a valid .spq file of its own, with `shard`: `{"number": k, "count": n}`, 1 <= k <= n,
        used.add("shard")
        shard = mapping(record["shard"])
        integer(shard.get("number"), 1, integer(shard.get("count"), 1))
        # > n MUST NOT pass `max_shards`.
        n_shards = integer(shard.get("count"))
        within(n_shards, 99999, "shards")
    assets = read_assets(array(record.get("assets")), used)
    content = None
    if "content" in record:
        # > Where the index has `content`, each tensor that is not tied MUST have it.
        content = hex_digest(record["content"])
        require(all(tensor.content or tensor.tied_to for tensor in tensors), "a tensor without content")
    sources = read_sources(mapping(record["sources"]), set(assets)) if "sources" in record else None
    return Index(alignment, chunk_alignment, segments, tensors, assets, content, sources, n_shards > 1, used)


def plain_name(record: Object) -> str:
    """Return the name of a tensor or segment."""
    # > A name of a tensor or of a segment MUST NOT hold U+0000.
    name = string(record.get("name"))
    require("\0" not in name, "a name with U+0000")
    return name


def read_tensor(record: Object, earlier: list[Tensor], by_name: dict[str, Tensor], used: set[str]) -> Tensor:
    """Return one tensor record; what depends on its scheme's tables is checked in schemes.py."""
    # > | `name` | string, 1 to 1024 bytes of UTF-8, unique in the file |
    name = plain_name(record)
    require(name != "", "a tensor without name")
    within(len(name.encode()), 1024, "bytes of a tensor's name")
    require(name not in by_name, f"{name}: two tensors of this name")
    # > | `shape` | list of at most 8 integers, each at least 0; an empty list is a scalar |
    shape = [integer(value) for value in array(record.get("shape"))]
    within(len(shape), 8, "dimensions")
    # > The product of a shape's dimensions, those that are 0 left out, MUST NOT pass 2^53 - 1.
    within(prod(dimension for dimension in shape if dimension), LARGEST, "elements of a shape")
    # > | `dtype` | the dtype of the tensor before quantization, and of the tensor that a reader restores |
    dtype = word(record.get("dtype"), tuple(BITS))
    used.update({FEATURE_OF_DTYPE[dtype]} if dtype in FEATURE_OF_DTYPE else set())
    # > | `scheme` | `dense`, `uniform`, `grouped`, `tied`, or a named scheme (5.8) |
    scheme = string(record.get("scheme"))
    if NAMED_SCHEME.fullmatch(scheme) and len(scheme) <= 64:
        used.add("named_schemes")
    else:
        word(scheme, ("dense", "uniform", "grouped", "tied"))
        used.update({scheme} - {"dense"})
    string(record.get("method"))
    # > | `transposed` | optional boolean (5.1); false where it is left out; true only for the schemes uniform and
    # > grouped |
    transposed = record.get("transposed", False)
    require(type(transposed) is bool, f"{name}: transposed is not a boolean")
    require(not transposed or scheme in ("uniform", "grouped"), f"{name}: {scheme} and transposed")
    read_activations(record, used)
    # > | `parameters` | object, by scheme (section 5); scheme `tied` has none, and the key may be left out |
    if scheme == "tied":
        record = {"parameters": {}, "streams": [], **record}
    tensor = Tensor(name, shape, dtype, scheme, mapping(record.get("parameters")), {}, transposed is True)
    tensor.activations = {
        key: record[key] for key in ("activation_clamp", "activation_quantization") if key in record
    }
    if "view" in record:
        # > | `view` | optional list of 1 to 8 integers, at least 1 each (5.1); only for the schemes uniform and grouped
        # > |
        used.add("view")
        require(scheme in ("uniform", "grouped"), f"{name}: {scheme} and view")
        tensor.view = [integer(value, 1) for value in array(record["view"])]
        require(len(tensor.view) >= 1, f"{name}: an empty view")
        within(len(tensor.view), 8, "dimensions of a view")
    if "content" in record:
        # > | `content` | optional: the tensor's hex digest (3.5); not for the scheme `tied` |
        require(scheme != "tied", f"{name}: tied, but with content")
        tensor.content = hex_digest(record["content"])
    if "origin" in record:
        # > | `origin` | optional (7.3); not for the scheme `tied` |
        require(scheme != "tied", f"{name}: tied, but with origin")
        tensor.origin = read_origin(mapping(record["origin"]))
    for value in array(record.get("streams")):
        stream = read_stream(mapping(value), earlier, used)
        # > list of stream records, each role at most once, in the order of the tables of section 5;
        require(stream.role not in tensor.streams, f"{name}: two streams {stream.role}")
        tensor.streams[stream.role] = stream
    if scheme == "tied":
        # > scheme `tied` has none, and the key may be left out
        require(not tensor.streams, f"{name}: tied, but with streams")
        # > | `tied_to` | scheme `tied` only: the name of an earlier tensor of the same shape and dtype that is not tied
        # > itself |
        tensor.tied_to = string(record.get("tied_to"))
        target = by_name.get(tensor.tied_to)
        require(
            target is not None and target.scheme != "tied" and (target.shape, target.dtype) == (shape, dtype),
            f"{name}: tied to none that can be, of its shape and dtype",
        )
    else:
        require("tied_to" not in record, f"{name}: tied_to without the scheme tied")
    return tensor


def read_stream(record: Object, earlier: list[Tensor], used: set[str]) -> Stream:
    """Return one stream record."""
    role = string(record.get("role"))
    stream = Stream(role, word(record.get("dtype"), tuple(BITS)), integer(record.get("n")))
    used.update({FEATURE_OF_DTYPE[stream.dtype]} if stream.dtype in FEATURE_OF_DTYPE else set())
    used.update({"small_floats"} if stream.dtype in ("f8_e4m3", "f8_e5m2") and role != "values" else set())
    if "same_as" in record:
        # > instead of `chunks` and `entropy_bits`: the number (from 0, in `tensors`) of an earlier tensor that holds a
        # > stream of the same role, dtype and `n` itself, not by `same_as`;
        used.add("shared_streams")
        require("chunks" not in record and "entropy_bits" not in record, f"{role}: same_as and chunks")
        stream.same_as = integer(record["same_as"])
        require(stream.same_as < len(earlier), f"{role}: same_as is no earlier tensor")
        held = earlier[stream.same_as].streams.get(role)
        require(
            held is not None and (held.dtype, held.n, held.same_as) == (stream.dtype, stream.n, None),
            f"{role}: same_as is no tensor that holds this stream",
        )
        # > rows * columns of a uniform or grouped tensor equals the elements of its own `codes`, which MUST NOT be
        # > `same_as`.
        # > not for the roles `values`, `codes`, `outlier_gaps`, `outlier_values` and `asset`
        require(role not in ("values", "codes", "asset", *OUTLIER_ROLES), f"{role}: not to be shared")
        return stream
    planes = n_planes(stream.dtype)
    if "entropy_bits" in record:
        # > | `entropy_bits` | optional list with one integer for each plane:
        bits = [integer(value) for value in array(record["entropy_bits"])]
        require(len(bits) == planes, f"{role}: entropy_bits")
    for value in array(record.get("chunks")):
        stream.chunks.append(read_chunk(array(value), stream, used))
    # > The elements of a stream's chunks, one after the other, are the elements of the stream; their numbers MUST add
    # > up to `n`.
    require(sum(n for n, _ in stream.chunks) == stream.n, f"{role}: the chunks do not add up to n")
    # > In a chunk that is not the stream's last, the number of elements times the element's bits MUST be a multiple
    # > of 8.
    uneven = any(n * BITS[stream.dtype] % 8 for n, _ in stream.chunks[:-1])
    require(not uneven, f"{role}: a chunk ends within a byte")
    return stream


def read_chunk(record: list[object], stream: Stream, used: set[str]) -> tuple[int, list[Plane]]:
    """Return one chunk record."""
    # > A chunk record is a flat list of integers: the number of elements, then for each plane in order `stored_bytes`,
    # > `codec` and `crc32`.
    planes = n_planes(stream.dtype)
    require(len(record) == 1 + 3 * planes, f"{stream.role}: length of a chunk record")
    n = integer(record[0])
    # > `raw_bytes` of a chunk's plane is `ceil(elements * min(bits, 8) / 8)`; it MUST NOT pass 16 MiB.
    raw_bytes = -(-n * min(BITS[stream.dtype], 8) // 8)
    within(raw_bytes, 16777216, "raw_bytes of a chunk")
    found = []
    for p in range(planes):
        stored_bytes, codec, crc32 = record[1 + 3 * p : 4 + 3 * p]
        plane = Plane(raw_bytes, integer(stored_bytes), integer(codec), integer(crc32, 0, 2**32 - 1))
        found.append(plane)
        # > so one that this version does not name is corrupt.
        require(plane.codec in (RAW, ZSTD, RANS), f"{stream.role}: codec {plane.codec}")
        used.update({ZSTD: {"zstd"}, RANS: {"rans"}}.get(plane.codec, set()))
        if n == 0:
            # > An empty chunk (0 elements) is stored as 0 bytes with codec `raw` and crc32 0 in each plane, and is
            # > allowed only in outlier streams (5.4);
            require(stream.role in OUTLIER_ROLES, f"{stream.role}: an empty chunk")
            require(plane == Plane(0, 0, RAW, 0), f"{stream.role}: an empty chunk that holds something")
        require(plane.codec != RAW or plane.stored_bytes == raw_bytes, f"{stream.role}: size of a raw chunk")
    return n, found


def read_activations(record: Object, used: set[str]) -> None:
    """Check what a tensor record says of its layer's input (section 6)."""
    if "activation_clamp" in record:
        used.add("activation_clamp")
        clamp = mapping(record["activation_clamp"])
        if word(clamp.get("kind"), ("range", "ratio")) == "range":
            low, high = (float_from_bits(integer(clamp.get(key), 0, 2**32 - 1)) for key in ("low", "high"))
            # > low and high MUST be finite with low <= high; the ratio MUST be from 0 to 0.5.
            require(-inf < low <= high < inf, "activation_clamp: low and high")
        else:
            ratio = float_from_bits(integer(clamp.get("ratio"), 0, 2**32 - 1))
            require(0 <= ratio <= 0.5, "activation_clamp: ratio")
            word(clamp.get("scope"), ("tensor", "token"))
    if "activation_quantization" in record:
        # > `activation_quantization`: `{"bits": 8, "scope": "token"}`:
        used.add("activation_quantization")
        quantization = mapping(record["activation_quantization"])
        integer(quantization.get("bits"), 8, 8)
        word(quantization.get("scope"), ("token",))


def read_assets(values: list[object], used: set[str]) -> dict[str, Stream]:
    """Return the assets' streams by name (section 7)."""
    within(len(values), 1024, "assets")
    found: dict[str, Stream] = {}
    for value in values:
        name = string(mapping(value).get("name"))
        check_path(name)
        # > Names MUST be unique, and no name followed by `/` may begin another.
        for other in found:
            require(not f"{name}/".startswith(f"{other}/"), f"the asset name {name} is taken")
            require(not other.startswith(f"{name}/"), f"the asset name {name} is a folder")
        # > Its stream has role `asset` and dtype u8.
        stream = read_stream(mapping(mapping(value).get("stream")), [], used)
        require((stream.role, stream.dtype) == ("asset", "u8"), f"the asset {name} has another stream")
        found[name] = stream
    return found
