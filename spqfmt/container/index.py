"""Index text -> records, validated once (FORMAT.md section 3). What leaves here obeys the format."""

import re
from collections.abc import Iterable, Mapping
from math import prod

from spqfmt import wire
from spqfmt.container.stream_records import Walk, parse_stream
from spqfmt.container.strict_json import Json, member, objects, optional
from spqfmt.errors import CorruptError, LimitError
from spqfmt.records import AssetRecord, Index, Segment, Shard, TensorRecord, align
from spqfmt.schemes.base import check_int, float_from_bits
from spqfmt.schemes.registry import SCHEMES

QUANTIZED_DTYPES = ("f64", "f32", "f16", "bf16")
_ASSET_NAME = re.compile(r"(?!\.{1,2}(/|$))[A-Za-z0-9._-]+(/(?!\.{1,2}(/|$))[A-Za-z0-9._-]+)*")


def parse_index(root: Json, index_offset: int, file_bytes: int) -> Index:
    """Build the records. `index_offset` and `file_bytes` are the trailer's."""
    alignment = member(root, "segment_alignment", int, "index")
    if alignment not in {wire.CHUNK_ALIGNMENT, wire.LARGE_SEGMENT_ALIGNMENT}:
        raise CorruptError(f"index: segment_alignment {alignment} is neither 64 nor 4096")
    walk = Walk()
    tensor_records = objects(member(root, "tensors", list, "index"), "index: tensors")
    segment_records = objects(member(root, "segments", list, "index"), "index: segments")
    if len(tensor_records) > wire.MAX_TENSORS or len(segment_records) > wire.MAX_SEGMENTS:
        raise LimitError("index: too many tensors or segments")
    segments = [_segment(record, tensor_records, walk, alignment) for record in segment_records]
    if len(walk.tensors) != len(tensor_records):
        raise CorruptError("index: segments do not hold all tensors")
    assets = _assets(objects(member(root, "assets", list, "index"), "index: assets"), walk)
    if align(walk.offset, wire.CHUNK_ALIGNMENT) != index_offset:
        raise CorruptError("index: its offset is not where the last chunk ends", index_offset)
    if walk.raw_bytes > wire.EXPANSION_RATIO * file_bytes + wire.EXPANSION_SLACK_BYTES:
        raise LimitError(f"index: {file_bytes} bytes cannot hold {walk.raw_bytes} raw bytes")
    return Index(
        alignment,
        tuple(segments),
        tuple(walk.tensors),
        tuple(assets),
        _metadata(root),
        _partial_plan(root),
        _shard(root),
    )


def _segment(record: Json, tensor_records: list[Json], walk: Walk, alignment: int) -> Segment:
    name = _name(record, "index: segment", 0)
    n_tensors = member(record, "n_tensors", int, f"segment {name!r}")
    first = len(walk.tensors)
    if not 1 <= n_tensors <= len(tensor_records) - first:
        raise CorruptError(f"segment {name!r} cannot hold {n_tensors} tensors")
    members = tensor_records[first : first + n_tensors]
    before = walk.offset
    begin = walk.offset = align(before, alignment)
    for tensor in members:
        walk.add(_tensor(tensor, walk))
    added = walk.tensors[first:]
    if not any(stream.chunks for tensor in added for stream in tensor.streams):
        walk.offset = begin = before  # a segment without chunks takes no room
    return Segment(name, first, n_tensors, begin, walk.offset)


def _tensor(record: Json, walk: Walk) -> TensorRecord:
    name = _name(record, "index: tensor", 1)
    where = f"tensor {name!r}"
    if name in walk.by_name:
        raise CorruptError(f"{where} is there twice")
    scheme = member(record, "scheme", str, where)
    # A tied tensor may leave both out.
    get = optional if scheme == "tied" else member
    streams = get(record, "streams", list, where) or []
    parameters = get(record, "parameters", dict, where) or {}
    tensor = TensorRecord(
        name=name,
        shape=_shape(member(record, "shape", list, where), where),
        dtype=member(record, "dtype", str, where),
        scheme=scheme,
        method=member(record, "method", str, where),
        parameters=parameters,
        streams=tuple(parse_stream(s, walk, where) for s in objects(streams, where)),
        tied_to=optional(record, "tied_to", str, where),
        transposed=optional(record, "transposed", bool, where) or False,
        activation_clamp=optional(record, "activation_clamp", dict, where),
        activation_quantization=optional(record, "activation_quantization", dict, where),
    )
    if tensor.dtype not in wire.DTYPES:
        raise CorruptError(f"{where}: unknown dtype {tensor.dtype!r}")
    _check_scheme(tensor, walk.by_name, where)
    _check_activations(tensor, where)
    return tensor


def _name(record: Json, where: str, least_bytes: int) -> str:
    name = member(record, "name", str, where)
    size = len(name.encode())
    if size > wire.MAX_NAME_BYTES:
        raise LimitError(f"{where}: a name has {size} bytes, {wire.MAX_NAME_BYTES} are allowed")
    if size < least_bytes:
        raise CorruptError(f"{where}: a name is empty")
    return name


def _shape(values: list[object], where: str) -> tuple[int, ...]:
    if len(values) > wire.MAX_DIMENSIONS:
        raise LimitError(f"{where}: {len(values)} dimensions, {wire.MAX_DIMENSIONS} are allowed")
    shape = tuple(check_int(value, f"{where}: a dimension") for value in values)
    if prod(n for n in shape if n) > 2**53 - 1:
        raise LimitError(f"{where}: its shape passes 2^53 - 1 elements")
    return shape


def _check_scheme(tensor: TensorRecord, tensors: Mapping[str, TensorRecord], where: str) -> None:
    if tensor.scheme == "tied":
        target = tensors.get(tensor.tied_to or "")
        if target is None or target.tied_to is not None or tensor.streams or tensor.transposed:
            raise CorruptError(f"{where}: tied to no earlier tensor")
        if (target.shape, target.dtype) != (tensor.shape, tensor.dtype):
            raise CorruptError(f"{where}: tied to a tensor of another shape or dtype")
        return
    if tensor.tied_to is not None or tensor.scheme not in SCHEMES:
        raise CorruptError(f"{where}: unknown scheme {tensor.scheme!r}")
    if tensor.transposed and len(tensor.shape) != 2:
        raise CorruptError(f"{where}: only a tensor of two dimensions can be transposed")
    if tensor.scheme != "dense":
        if not tensor.shape or 0 in tensor.shape:
            raise CorruptError(f"{where}: a scalar or empty tensor must be dense")
        if tensor.dtype not in QUANTIZED_DTYPES:
            raise CorruptError(f"{where}: {tensor.scheme} cannot restore {tensor.dtype}")
    SCHEMES[tensor.scheme].check(tensor)


def _check_activations(tensor: TensorRecord, where: str) -> None:
    clamp, quantization = tensor.activation_clamp, tensor.activation_quantization
    if clamp is not None:
        kind = clamp.get("kind")
        if kind == "range":
            low, high = (_float(clamp, key, where) for key in ("low", "high"))
            if low > high:
                raise CorruptError(f"{where}: clamp range is empty")
        elif kind == "ratio" and clamp.get("scope") in ("tensor", "token"):
            if not 0 <= _float(clamp, "ratio", where) <= 0.5:
                raise CorruptError(f"{where}: clamp ratio is not from 0 to 0.5")
        else:
            raise CorruptError(f"{where}: unknown activation_clamp")
    if quantization is not None and (quantization.get("bits") != 8 or quantization.get("scope") != "token"):
        raise CorruptError(f"{where}: unknown activation_quantization")


def _float(record: Mapping[str, object], key: str, where: str) -> float:
    return float(float_from_bits(record.get(key), f"{where}: {key}"))


def _assets(records: list[Json], walk: Walk) -> list[AssetRecord]:
    if len(records) > wire.MAX_ASSETS:
        raise LimitError(f"index: more than {wire.MAX_ASSETS} assets")
    assets: dict[str, AssetRecord] = {}
    for record in records:
        name = member(record, "name", str, "index: asset")
        if not _ASSET_NAME.fullmatch(name) or len(name) > 255 or name in assets:
            raise CorruptError(f"asset name {name[:80]!r} is not allowed or there twice")
        where = f"asset {name!r}"
        stream = parse_stream(member(record, "stream", dict, where), walk, where)
        if stream.role != "asset" or stream.dtype != "u8":
            raise CorruptError(f"{where}: its stream is not of role asset and dtype u8")
        assets[name] = AssetRecord(name, stream)
    _check_folders(assets)
    return list(assets.values())


def _check_folders(names: Iterable[str]) -> None:
    known = set(names)
    for name in known:
        parts = name.split("/")
        for depth in range(1, len(parts)):
            if "/".join(parts[:depth]) in known:
                raise CorruptError(f"asset {name!r} lies in another asset")


def _metadata(root: Json) -> dict[str, str]:
    metadata = member(root, "metadata", dict, "index")
    if not all(isinstance(value, str) for value in metadata.values()):
        raise CorruptError("index: metadata holds something else than strings")
    return metadata


def _partial_plan(root: Json) -> Json | None:
    plan = optional(root, "partial_plan", dict, "index")
    if plan is not None:
        key = {"every": "n", "speed": "target_bytes"}.get(str(plan.get("rule")))
        if key is None:
            raise CorruptError("index: unknown rule of partial_plan")
        check_int(plan.get(key), f"partial_plan: {key}", 1 if key == "n" else 0)
    return plan


def _shard(root: Json) -> Shard | None:
    record = optional(root, "shard", dict, "index")
    if record is None:
        return None
    shard = Shard(*(member(record, key, int, "shard") for key in ("number", "count")))
    if not 1 <= shard.number <= shard.count:
        raise CorruptError(f"shard {shard.number} of {shard.count}")
    return shard
