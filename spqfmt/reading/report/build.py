"""A file's index -> its report. Of the payload only the first bytes of chunks are read: the size of their tables."""

import os
from collections import Counter
from collections.abc import Sequence

from spqfmt import wire
from spqfmt.codecs.registry import CODECS_BY_ID
from spqfmt.container.model import OpenModel, open_model
from spqfmt.container.reader import Reader
from spqfmt.reading.report.file import FileReport
from spqfmt.reading.report.groups import mean_entropy
from spqfmt.reading.report.names import layer_of, projection_of
from spqfmt.reading.report.records import CostParts, FileTotals, StreamReport, TensorReport
from spqfmt.reading.report.source import form_of, quantizer_of, source_of
from spqfmt.reading.report.tables import table_bytes
from spqfmt.records import Stream, TensorRecord, bf16_bytes
from spqfmt.schemes.trellis import trellis_rows

_DIGEST_BYTES = 32
_CRC_BYTES = 4


def inspect_file(path: str | os.PathLike[str]) -> FileReport:
    """Describe a .spq file, or a model in shards by its .spq.index.json. Raises FormatError, OSError.

    At an address no heads of chunks are read, each of which would be a request: bytes of tables count for what they
    are the tables of.
    """
    with open_model(path) as model:
        return _report(model)


def _report(model: OpenModel) -> FileReport:
    readers, file_bytes = model.readers, model.n_bytes
    tensors: list[TensorReport] = []
    crc_bytes, quantizer = 0, quantizer_of(model)
    for reader in readers:
        n_planes = sum(a.stream.chunks.n_stored_planes for a in reader.index.assets)
        for segment in reader.index.segments:
            for record in reader.index.tensors_of(segment):
                n_planes += sum(stream.chunks.n_stored_planes for stream in record.streams)
                tensors.append(
                    report_tensor(
                        reader,
                        record,
                        segment.name,
                        file_bytes,
                        quantizer=quantizer,
                        with_tables=reader.remote is None,
                    )
                )
        # A compressed index holds each CRC-32 in 4 bytes or a little more; an index of like chunks may need less.
        crc_bytes += min(_CRC_BYTES * n_planes, reader.trailer.index_stored_bytes)
    return FileReport(
        format_version=f"{wire.FORMAT_MAJOR}.{max(reader.trailer.minor for reader in readers)}",
        file_bytes=file_bytes,
        n_files=len(readers),
        content=model.index.content,
        metadata=dict(model.index.metadata),
        partial_plan=model.index.partial_plan,
        assets={a.name: a.stream.stored_bytes for reader in readers for a in reader.index.assets},
        totals=_totals(readers, tensors, file_bytes, crc_bytes),
        tensors=tuple(tensors),
        source=source_of(model, tensors),
    )


def _totals(
    readers: tuple[Reader, ...], tensors: Sequence[TensorReport], file_bytes: int, crc_bytes: int
) -> FileTotals:
    shard_index_bytes = file_bytes - sum(reader.file_bytes for reader in readers)
    tensor_bytes = sum(t.stored_bytes for t in tensors)
    asset_bytes = sum(a.stream.stored_bytes for reader in readers for a in reader.index.assets)
    index_bytes = sum(reader.trailer.index_stored_bytes for reader in readers)
    header_bytes, trailer_bytes = len(readers) * wire.HEADER_BYTES, len(readers) * wire.TRAILER_BYTES
    around_bytes = asset_bytes + index_bytes + header_bytes + trailer_bytes + shard_index_bytes
    padding_bytes = file_bytes - tensor_bytes - around_bytes
    digest_bytes = len(readers) * _DIGEST_BYTES
    n_weights, raw_bytes = sum(t.n_weights for t in tensors), sum(t.raw_bytes for t in tensors)
    outliers = sum(t.outliers for t in tensors)
    around = CostParts(
        assets=asset_bytes,
        index=index_bytes - crc_bytes + shard_index_bytes,
        checksums=crc_bytes + digest_bytes,
        frame=header_bytes + trailer_bytes - digest_bytes,
        padding=padding_bytes,
    )
    return FileTotals(
        n_tensors=len(tensors),
        n_weights=n_weights,
        raw_bytes=raw_bytes,
        bf16_bytes=sum(bf16_bytes(t.dtype, t.n_weights) for t in tensors),
        bits_per_weight=8 * file_bytes / n_weights if n_weights else 0.0,
        entropy_bits_per_weight=mean_entropy(tensors),
        ratio=raw_bytes / file_bytes,
        outliers=outliers,
        outlier_share=outliers / n_weights if n_weights else 0.0,
        tensor_bytes=tensor_bytes,
        asset_bytes=asset_bytes,
        padding_bytes=padding_bytes,
        index_bytes=index_bytes,
        header_bytes=header_bytes,
        trailer_bytes=trailer_bytes,
        shard_index_bytes=shard_index_bytes,
        parts=CostParts.sum((around, *(t.parts for t in tensors))),
    )


def report_tensor(
    reader: Reader,
    record: TensorRecord,
    segment: str,
    file_bytes: int,
    *,
    quantizer: str = "",
    with_tables: bool = True,
) -> TensorReport:
    """What one tensor costs; `file_bytes` is what its share is of, `quantizer` what has quantized the source.

    Without `with_tables` the payload is left alone.

    Raises CorruptError for damaged tables.
    """
    n = 0 if record.tied_to is not None else record.n_weights
    streams = tuple(_stream(reader, record, stream, with_tables=with_tables) for stream in record.streams)
    stored_bytes = sum(stream.stored_bytes for stream in streams)
    raw_bytes = 0 if record.tied_to is not None else record.source_bytes
    entropy = _entropy_bits(record)
    values, codes = record.by_role.get("outlier_values"), record.by_role.get("codes")
    outliers = 0 if values is None else values.n
    group_size = record.parameters.get("group_size")
    stored_raw = sum(stream.raw_bytes for stream in streams)
    form, form_bytes = form_of(reader, record, stored_raw=stored_raw, quantizer=quantizer)
    return TensorReport(
        name=record.name,
        layer=layer_of(record.name),
        projection=projection_of(record.name),
        shape=record.shape,
        dtype=record.dtype,
        scheme=record.scheme,
        method=record.method,
        segment=segment,
        code_dtype=None if codes is None else codes.dtype,
        group_size=group_size if isinstance(group_size, int) else None,
        tied_to=record.tied_to,
        n_weights=n,
        raw_bytes=raw_bytes,
        stored_bytes=stored_bytes,
        bits_per_weight=8 * stored_bytes / n if n else 0.0,
        entropy_bits_per_weight=entropy / n if n and entropy is not None else None,
        ratio=raw_bytes / stored_bytes if stored_bytes else None,
        share=stored_bytes / file_bytes,
        outliers=outliers,
        outlier_share=outliers / n if n else 0.0,
        parts=_parts(streams),
        streams=streams,
        form=form,
        form_bytes=form_bytes,
        trellis_rows=trellis_rows(record),
    )


def _entropy_bits(record: TensorRecord) -> int | None:
    own = [stream for stream in record.streams if stream.chunks]
    known = [stream.entropy_bits for stream in own if stream.entropy_bits is not None]
    return sum(map(sum, known)) if len(known) == len(own) else None


_PARTS = {
    "values": "values",
    "codes": "codes",
    "blocks": "codes",
    "outlier_gaps": "outliers",
    "outlier_values": "outliers",
    "channel_order": "orders",
    "permutation": "orders",
}


def part_of(role: str) -> str:
    """The field of `CostParts` that a stream's bytes count for."""
    return _PARTS.get(role, "scales")


def _stream(reader: Reader, record: TensorRecord, stream: Stream, *, with_tables: bool) -> StreamReport:
    what = f"tensor {record.name!r}, {stream.role}"
    codecs = {CODECS_BY_ID[codec].name for codec in stream.chunks.codecs}
    return StreamReport(
        role=stream.role,
        dtype=stream.dtype,
        codec="+".join(sorted(codecs)) or ("shared" if stream.same_as is not None else "none"),
        n_chunks=len(stream.chunks),
        raw_bytes=stream.raw_bytes,
        stored_bytes=stream.stored_bytes,
        part=part_of(stream.role),
        table_bytes=table_bytes(reader, stream, what) if with_tables else 0,
        entropy_bits=None if stream.entropy_bits is None else sum(stream.entropy_bits),
    )


def _parts(streams: Sequence[StreamReport]) -> CostParts:
    parts: Counter[str] = Counter()
    for stream in streams:
        parts[stream.part] += stream.stored_bytes - stream.table_bytes
        parts["tables"] += stream.table_bytes
    return CostParts(**parts)
