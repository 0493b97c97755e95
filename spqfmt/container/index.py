"""Index text -> records (FORMAT.md section 3): what concerns all tensors at once, each tensor's on demand.

Nothing is made of keys that this version does not know.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from spqfmt import wire
from spqfmt.asset_names import is_asset_name
from spqfmt.container.alignment import align
from spqfmt.container.features import ALL_REQUIRED, index_features, required_mask
from spqfmt.container.source_records import SOURCES, check_sources, parse_sources
from spqfmt.container.stream_records import STREAM, parse_streams, stream_json
from spqfmt.container.strict_json import Json, hex_digest, member, optional
from spqfmt.container.tensor_records import RecordReader, check_name
from spqfmt.errors import CorruptError, LimitError
from spqfmt.kernels.json_text import PLACE_COLUMNS, Wanted, project_json, tensor_places
from spqfmt.records import AssetRecord, Index, Segment, Shard, TensorRecords, TensorsByName
from spqfmt.schemes.base import check_int

_RATES: Wanted = {"bytes_per_s": "scalar", "chunk_ns": "scalar"}
_ROOT: Wanted = {
    "segment_alignment": "scalar",
    "chunk_alignment": "scalar",
    "content": "scalar",
    "segments": wire.MAX_SEGMENTS,
    "tensors": wire.MAX_TENSORS,
    "assets": wire.MAX_ASSETS,
    "metadata": "strings",
    "partial_plan": {
        "rule": "scalar",
        "n": "scalar",
        "target_bytes": "scalar",
        "rates": {"zstd": _RATES, "rans": _RATES},
    },
    "shard": {"number": "scalar", "count": "scalar"},
    "sources": SOURCES,
}
_SEGMENT: Wanted = {"name": "scalar", "n_tensors": "scalar"}
_ASSET: Wanted = {"name": "scalar", "stream": STREAM}


def parse_index(
    text: bytes,
    index_offset: int,
    file_bytes: int,
    declared: int = ALL_REQUIRED,
    context: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Index:
    """Build the index of a text that `check_json` has passed. `index_offset` and `file_bytes` are the trailer's.

    `declared`: the required features that the trailer names. `context` is entered wherever a tensor's record is made.
    """
    root = _project(text, [0, len(text)], _ROOT, "index")
    alignment = member(root, "segment_alignment", int, "index")
    if alignment not in {wire.CHUNK_ALIGNMENT, wire.LARGE_SEGMENT_ALIGNMENT}:
        raise CorruptError(f"index: segment_alignment {alignment} is neither 64 nor 4096")
    of_chunks = optional(root, "chunk_alignment", int, "index")
    chunk_alignment = wire.CHUNK_ALIGNMENT if of_chunks is None else of_chunks
    if chunk_alignment not in {wire.CHUNK_ALIGNMENT, alignment}:
        raise CorruptError(f"index: chunk_alignment {chunk_alignment} is neither 64 nor the segments'")
    spans = _spans(root, "tensors")
    names, places = tensor_places(text, spans, chunk_alignment)
    if len(names) < len(spans):
        # Asked for, that record says what is wrong with it.
        nowhere = np.zeros(len(spans), np.int64)
        RecordReader(
            text=text,
            spans=spans,
            begins=nowhere,
            names=names,
            alignment=chunk_alignment,
            declared=declared,
            context=nullcontext,
        ).record(len(names))
        raise CorruptError(f"index: tensor record {len(names)} does not say where its chunks lie")
    segments, begins, end = _lay_out(text, _spans(root, "segments"), places, alignment)
    content = hex_digest(root, "content", "index")
    has_content = content is not None
    reader = RecordReader(
        text=text,
        spans=spans,
        begins=begins,
        names=names,
        alignment=chunk_alignment,
        declared=declared,
        context=context,
        all_have_content=has_content,
    )
    if len(reader.numbers) < len(names):
        raise CorruptError(f"tensor {_repeated(names)!r} is there twice")
    assets = _assets(text, _spans(root, "assets"), end, chunk_alignment)
    for asset in assets:
        end = asset.stream.chunks.end or end
    if align(end, wire.CHUNK_ALIGNMENT) != index_offset:
        raise CorruptError("index: its offset is not where the last chunk ends", index_offset)
    raw_bytes = sum(asset.stream.raw_bytes for asset in assets) + sum(_column(places, "raw_bytes").tolist())
    if raw_bytes > wire.EXPANSION_RATIO * file_bytes + wire.EXPANSION_SLACK_BYTES:
        raise LimitError(f"index: {file_bytes} bytes cannot hold {raw_bytes} raw bytes")
    tensors = TensorRecords(reader.record, range(len(names)))
    index = Index(
        segment_alignment=alignment,
        segments=segments,
        tensors=tensors,
        by_name=TensorsByName(tensors, reader.numbers),
        assets=assets,
        metadata=member(root, "metadata", dict, "index"),
        partial_plan=_partial_plan(root),
        shard=_shard(root),
        chunk_alignment=of_chunks,
        content=content,
        sources=parse_sources(root, text, {asset.name: asset.stream.n for asset in assets}),
        json_of=reader.json_of,
    )
    if index.sources is not None and (index.shard is None or index.shard.count == 1):
        check_sources(index.sources, len(names), file_bytes)
    undeclared = required_mask(index_features(index)) & ~declared
    if undeclared:
        raise CorruptError(f"feature bit {undeclared.bit_length() - 1} is used but not declared")
    return index


def root_json(
    segment_alignment: int,
    chunk_alignment: int,
    segments: Sequence[Json],
    tensors: Sequence[Json],
    assets: Sequence[Json],
    metadata: Mapping[str, str],
) -> Json:
    """The root as each index has it."""
    return {
        "segment_alignment": segment_alignment,
        **({} if chunk_alignment == wire.CHUNK_ALIGNMENT else {"chunk_alignment": chunk_alignment}),
        "segments": segments,
        "tensors": tensors,
        "assets": assets,
        "metadata": dict(metadata),
    }


def asset_json(asset: AssetRecord, like: Mapping[str, object] = MappingProxyType({})) -> Json:
    """The record as it stands in an index. `like` is the same asset's in another file: its other keys are kept."""
    other = like.get("stream")
    stream = stream_json(asset.stream, other if isinstance(other, dict) else {})
    return {"name": asset.name, **like, "stream": stream}


def _project(text: bytes, span: Sequence[int], wanted: Wanted, where: str) -> Json:
    begin, end = span
    found = project_json(text, begin, end, wanted)
    if not isinstance(found, dict):
        raise CorruptError(f"{where} is not an object")
    return found


def _spans(root: Json, key: str) -> NDArray[np.int64]:
    found = root.get(key)
    if not isinstance(found, bytes):
        raise CorruptError(f"index: {key} is missing or not a list")
    return np.frombuffer(found, np.int64).reshape(-1, 2)


def _column(places: NDArray[np.int64], name: str) -> NDArray[np.int64]:
    column: NDArray[np.int64] = places[:, PLACE_COLUMNS.index(name)]
    return column


def _repeated(names: Sequence[str]) -> str:
    return Counter(names).most_common(1)[0][0]


def _lay_out(
    text: bytes, spans: NDArray[np.int64], places: NDArray[np.int64], alignment: int
) -> tuple[tuple[Segment, ...], NDArray[np.int64], int]:
    """The segments at `spans`, where each tensor's chunks begin, and the end of the last chunk."""
    n_tensors = len(places)
    if len(spans) > n_tensors:
        raise CorruptError("index: more segments than tensors")
    extents = np.concatenate([np.zeros(1, np.int64), np.cumsum(_column(places, "extent"))])
    if extents[-1] > wire.MAX_FILE_BYTES or (np.diff(extents) < 0).any():
        raise CorruptError("index: the chunks are larger than any file")
    # For each tensor the last one up to it that has chunks.
    holder = np.maximum.accumulate(np.where(_column(places, "n_planes") > 0, np.arange(n_tensors), -1))
    tails = _column(places, "tail")
    begins = extents[:-1].copy()
    segments: list[Segment] = []
    first, end = 0, wire.HEADER_BYTES
    for span in spans.tolist():
        record = _project(text, span, _SEGMENT, "index: a segment")
        name = check_name(record, "index: segment", 0)
        n = member(record, "n_tensors", int, f"segment {name!r}")
        if not 1 <= n <= n_tensors - first:
            raise CorruptError(f"segment {name!r} cannot hold {n} tensors")
        stop, begin = first + n, end
        last = int(holder[stop - 1])
        if last >= first:  # a segment without chunks takes no room
            begin = align(end, alignment)
            begins[first:stop] += begin - extents[first]
            end = begin + int(extents[stop] - extents[first] - tails[last])
        segments.append(Segment(name=name, first_tensor=first, n_tensors=n, offset=begin, end=end))
        first = stop
    if first != n_tensors:
        raise CorruptError("index: segments do not hold all tensors")
    return tuple(segments), begins, end


def _assets(text: bytes, spans: NDArray[np.int64], end: int, alignment: int) -> tuple[AssetRecord, ...]:
    assets: dict[str, AssetRecord] = {}
    for span in spans.tolist():
        record = _project(text, span, _ASSET, "index: an asset")
        name = member(record, "name", str, "index: asset")
        if not is_asset_name(name) or name in assets:
            raise CorruptError(f"asset name {name[:80]!r} is not allowed or there twice")
        where = f"asset {name!r}"
        begin = align(end, alignment)
        (stream,) = parse_streams([member(record, "stream", dict, where)], begin, alignment, where)
        if stream.role != "asset" or stream.dtype != "u8" or stream.same_as is not None:
            raise CorruptError(f"{where}: its stream is not of role asset and dtype u8")
        assets[name] = AssetRecord(name, stream)
        end = stream.chunks.end or end
    _check_folders(assets)
    return tuple(assets.values())


def _check_folders(names: Iterable[str]) -> None:
    known = set(names)
    for name in known:
        parts = name.split("/")
        for depth in range(1, len(parts)):
            if "/".join(parts[:depth]) in known:
                raise CorruptError(f"asset {name!r} lies in another asset")


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
    if shard.count > wire.MAX_SHARDS:
        raise LimitError(f"{shard.count} shards, {wire.MAX_SHARDS} are allowed")
    return shard
