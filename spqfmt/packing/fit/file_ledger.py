"""What a size is counted with while only some tensors are known: what all ledgers do, and the ledger of a file.

A file's is the writer's layout on paper (FORMAT.md 2.3); memory_ledger.py has the one of memory.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import ClassVar, Protocol, Self

from spqfmt import wire
from spqfmt.codecs.chunks import EncodedPlane
from spqfmt.container.alignment import align
from spqfmt.container.encode import compress_index, encode_asset, encode_chunk
from spqfmt.container.index import asset_json, root_json
from spqfmt.container.stream_records import store_stream
from spqfmt.container.strict_json import Json, dump
from spqfmt.container.tensor_records import store_tensor, tensor_json
from spqfmt.importers.base import Asset
from spqfmt.records import AssetRecord, Stream, TensorRecord
from spqfmt.schemes.base import Encoded

_RECORD_BYTES = 90
"""About what a tensor takes in the stored index, before any is known, without its digest."""
_DIGEST_BYTES = 39
"""What a digest of 64 digits takes there."""
_GROWTH = 1.2
"""The index is estimated anew when so many times as many tensors are known."""
_INDEX_SLACK = 1.02
"""Records that are not known yet may compress worse than the others."""


def store(record: TensorRecord, encoded: Encoded, codec: str, alignment: int) -> TensorRecord:
    """The record that the file will have, with all chunks encoded as the packer will, at places counted from 0."""
    chunks = ([encode_chunk(part, s.dtype, codec) for part in s.chunks()] for s in encoded.streams)
    shared = [replace(stream.record, same_as=0) for stream, _ in encoded.same_as.values()]
    return store_tensor(record, chunks, shared, _Paper(alignment).put)


class _Paper:
    """Takes planes as a writer does, and only counts where they would lie."""

    def __init__(self, alignment: int) -> None:
        self._end, self._alignment = 0, alignment

    def put(self, plane: EncodedPlane, _: int) -> tuple[int, EncodedPlane]:
        """Its place behind those that came before."""
        begin = align(self._end, self._alignment)
        self._end = begin + len(plane.stored)
        return begin, plane


def placed_bytes(record: TensorRecord, alignment: int) -> int:
    """Stored bytes of a tensor with the padding that follows each plane."""
    return sum(align(plane, alignment) for plane in record.plane_bytes)


class Ledger(Protocol):
    """Bytes of what a size is asked for: a file, or the memory that its model needs. `unit`: bytes, and of what."""

    unit: ClassVar[str]

    def knowing(self, more: Mapping[str, TensorRecord]) -> Self:
        """Return a ledger that knows these tensors too."""
        ...

    def counts(self, name: str) -> bool:
        """Whether the bytes of this tensor matter."""
        ...

    def n_bytes(self, expected: Mapping[str, float]) -> int:
        """Bytes in all, with padding, when the unknown tensors take the bytes in the file that are expected."""
        ...


@dataclass(frozen=True)
class FileLedger:
    """`segments` are names with the names of their tensors, tied ones left out; `known` what is stored so far."""

    unit: ClassVar[str] = "bytes"

    segments: tuple[tuple[str, tuple[str, ...]], ...]
    alignment: int
    chunk_alignment: int
    assets: tuple[AssetRecord, ...]
    metadata: Mapping[str, str]
    identity: bool = False
    """Whether the file will have content digests."""
    sources: Json | None = None
    """What the index will say of the source's files, digits in place of their digests."""
    known: Mapping[str, TensorRecord] = field(default_factory=dict)
    _n_compressed: int = 0
    _index_bytes: float = 0.0

    @classmethod
    def begin(
        cls,
        segments: tuple[tuple[str, tuple[str, ...]], ...],
        alignment: int,
        chunk_alignment: int,
        assets: Sequence[Asset],
        metadata: Mapping[str, str],
        *,
        identity: bool,
        sources: Json | None = None,
    ) -> Self:
        """Nothing is known but the assets."""
        stored = tuple(_store_asset(asset, chunk_alignment) for asset in assets)
        return cls(
            segments=segments,
            alignment=alignment,
            chunk_alignment=chunk_alignment,
            assets=stored,
            metadata=metadata,
            identity=identity,
            sources=sources,
        ).knowing({})

    def knowing(self, more: Mapping[str, TensorRecord]) -> Self:
        """Return a ledger that knows these tensors too."""
        known = {**self.known, **more}
        missing = sum(len(names) for _, names in self.segments) - len(known)
        if missing and len(known) < _GROWTH * self._n_compressed:
            # Not worth compressing the index again.
            return replace(self, known=known)
        records = [
            tensor_json(known[name]) | self._digest(name)
            for _, names in self.segments
            for name in names
            if name in known
        ]
        segments: list[Json] = [{"name": name, "n_tensors": len(names)} for name, names in self.segments]
        root = root_json(
            segment_alignment=self.alignment,
            chunk_alignment=self.chunk_alignment,
            segments=segments,
            tensors=records,
            assets=list(map(asset_json, self.assets)),
            metadata=self.metadata,
        )
        root |= self._digest("") | ({} if self.sources is None else {"sources": self.sources})
        index_bytes = float(len(compress_index(dump(root), sum(len(names) for _, names in self.segments))))
        if missing:
            each = max(_RECORD_BYTES + _DIGEST_BYTES * self.identity, index_bytes / max(1, len(records)))
            index_bytes = _INDEX_SLACK * (index_bytes + missing * each)
        return replace(self, known=known, _n_compressed=len(known), _index_bytes=index_bytes)

    def _digest(self, name: str) -> Json:
        """Digits that compress as little as those of the content."""
        return {"content": sha256(name.encode()).hexdigest()} if self.identity else {}

    def counts(self, name: str) -> bool:
        """Return True: every tensor takes bytes of the file."""
        return True

    def n_bytes(self, expected: Mapping[str, float]) -> int:
        """Size of the file, with `expected` bytes, padding included, of tensors that are not known."""
        offset = wire.HEADER_BYTES
        for _, names in self.segments:
            new = True
            for name in names:
                stored = self.known.get(name)
                for plane in (round(expected.get(name, 0)),) if stored is None else stored.plane_bytes:
                    offset = align(offset, self.alignment if new else self.chunk_alignment) + plane
                    new = False
        for asset in self.assets:
            for plane in asset.stream.chunks.plane_bytes:
                offset = align(offset, self.chunk_alignment) + plane
        return align(offset, wire.CHUNK_ALIGNMENT) + round(self._index_bytes) + wire.TRAILER_BYTES

    @property
    def asset_bytes(self) -> int:
        """Bytes that the assets take as stored."""
        return sum(asset.stream.stored_bytes for asset in self.assets)


def _store_asset(asset: Asset, alignment: int) -> AssetRecord:
    stream = Stream("asset", "u8", len(asset.data))
    return AssetRecord(asset.name, store_stream(stream, encode_asset(asset.data), _Paper(alignment).put))
