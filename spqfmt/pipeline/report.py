"""What every tensor costs: the contents of `spqfmt inspect`. Reads the index alone."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path

from spqfmt import wire
from spqfmt.container.reader import Reader
from spqfmt.container.shards import open_readers
from spqfmt.records import Stream, TensorRecord

_CODEC_NAMES = {number: name for name, number in wire.CODECS.items()}


@dataclass(frozen=True)
class StreamReport:
    """One stream. `codec` joins the codecs of its chunks, as in raw+rans."""

    role: str
    dtype: str
    codec: str
    n_chunks: int
    raw_bytes: int
    stored_bytes: int


@dataclass(frozen=True)
class TensorReport:
    """One tensor. `raw_bytes` is its size in its source dtype: BF16's for 16-bit floats."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    scheme: str
    method: str
    segment: str
    n_weights: int
    raw_bytes: int
    stored_bytes: int
    bits_per_weight: float
    entropy_bits_per_weight: float | None
    ratio: float | None
    outliers: int
    streams: tuple[StreamReport, ...]

    def to_json(self) -> dict[str, object]:
        """As plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Totals:
    """Where the file's bytes are; the parts up to `trailer_bytes` add up to `file_bytes`."""

    n_tensors: int
    n_weights: int
    raw_bytes: int
    bits_per_weight: float
    ratio: float
    tensor_bytes: int
    asset_bytes: int
    padding_bytes: int
    index_bytes: int
    header_bytes: int
    trailer_bytes: int
    shard_index_bytes: int


@dataclass(frozen=True)
class FileReport:
    """All of `inspect --json`."""

    format_version: str
    file_bytes: int
    metadata: dict[str, str]
    assets: dict[str, int]
    totals: Totals
    tensors: tuple[TensorReport, ...]

    def to_json(self) -> dict[str, object]:
        """As plain data."""
        return asdict(self)


def inspect_file(path: str | os.PathLike[str]) -> FileReport:
    """Describe a .spq file, or a model in shards by its .spq.index.json. Raises FormatError."""
    readers = open_readers(path)
    try:
        return _report(readers, Path(path))
    finally:
        for reader in readers:
            reader.close()


def _report(readers: tuple[Reader, ...], path: Path) -> FileReport:
    shard_index_bytes = path.stat().st_size if path != readers[0].path else 0
    file_bytes = sum(reader.file_bytes for reader in readers) + shard_index_bytes
    tensors = tuple(
        report_tensor(record, segment.name)
        for reader in readers
        for segment in reader.index.segments
        for record in reader.index.tensors[segment.first_tensor : segment.first_tensor + segment.n_tensors]
    )
    assets = {a.name: a.stream.stored_bytes for reader in readers for a in reader.index.assets}
    tensor_bytes, asset_bytes = sum(t.stored_bytes for t in tensors), sum(assets.values())
    index_bytes = sum(reader.trailer.index_stored_bytes for reader in readers)
    frame_bytes = len(readers) * (wire.HEADER_BYTES + wire.TRAILER_BYTES)
    n_weights, raw_bytes = sum(t.n_weights for t in tensors), sum(t.raw_bytes for t in tensors)
    totals = Totals(
        n_tensors=len(tensors),
        n_weights=n_weights,
        raw_bytes=raw_bytes,
        bits_per_weight=8 * file_bytes / n_weights if n_weights else 0.0,
        ratio=raw_bytes / file_bytes,
        tensor_bytes=tensor_bytes,
        asset_bytes=asset_bytes,
        padding_bytes=file_bytes
        - tensor_bytes - asset_bytes - index_bytes - frame_bytes - shard_index_bytes,
        index_bytes=index_bytes,
        header_bytes=len(readers) * wire.HEADER_BYTES,
        trailer_bytes=len(readers) * wire.TRAILER_BYTES,
        shard_index_bytes=shard_index_bytes,
    )  # fmt: skip
    return FileReport(
        f"{wire.FORMAT_MAJOR}.{wire.FORMAT_MINOR}",
        file_bytes,
        dict(readers[0].index.metadata),
        assets,
        totals,
        tensors,
    )


def report_tensor(record: TensorRecord, segment: str) -> TensorReport:
    """What one tensor costs."""
    n = 0 if record.tied_to is not None else record.n_weights
    stored_bytes = sum(stream.stored_bytes for stream in record.streams)
    raw_bytes = 0 if record.tied_to is not None else record.bf16_bytes
    entropy = _entropy_bits(record)
    values = record.by_role.get("outlier_values")
    return TensorReport(
        name=record.name,
        shape=record.shape,
        dtype=record.dtype,
        scheme=record.scheme,
        method=record.method,
        segment=segment,
        n_weights=n,
        raw_bytes=raw_bytes,
        stored_bytes=stored_bytes,
        bits_per_weight=8 * stored_bytes / n if n else 0.0,
        entropy_bits_per_weight=entropy / n if n and entropy is not None else None,
        ratio=raw_bytes / stored_bytes if stored_bytes else None,
        outliers=0 if values is None else values.n,
        streams=tuple(_stream(stream) for stream in record.streams),
    )


def _entropy_bits(record: TensorRecord) -> int | None:
    own = [stream for stream in record.streams if stream.chunks]
    known = [stream.entropy_bits for stream in own if stream.entropy_bits is not None]
    return sum(map(sum, known)) if len(known) == len(own) else None


def _stream(stream: Stream) -> StreamReport:
    codecs = {_CODEC_NAMES[p.codec] for chunk in stream.chunks for p in chunk.planes}
    return StreamReport(
        stream.role,
        stream.dtype,
        "+".join(sorted(codecs)) or ("shared" if stream.same_as is not None else "none"),
        len(stream.chunks),
        stream.raw_bytes,
        stream.stored_bytes,
    )
