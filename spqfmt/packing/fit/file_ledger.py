"""What a size is counted with while only some tensors are known: what all ledgers do, and the ledger of a file.

A file's is the writer's layout on paper (FORMAT.md 2.3); memory_ledger.py has the one of memory.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import ClassVar, Protocol, Self

import numpy as np

from spqfmt import wire
from spqfmt.codecs.chunks import EncodedChunk
from spqfmt.container.encode import compress_index, encode_chunk, encode_text
from spqfmt.container.strict_json import Json, dump
from spqfmt.importers.base import Asset
from spqfmt.records import align, n_planes
from spqfmt.schemes.base import Encoded, StreamData

_ASSET_CHUNK_BYTES = 1 << 20
"""As the writer cuts them."""
_RECORD_BYTES = 90
"""About what a tensor takes in the stored index, before any is known, without its digest."""
_DIGEST_BYTES = 39
"""What a digest of 64 digits takes there."""
_GROWTH = 1.2
"""The index is estimated anew when so many times as many tensors are known."""
_INDEX_SLACK = 1.02
"""Records that are not known yet may compress worse than the others."""


@dataclass(frozen=True)
class SizedTensor:
    """A tensor's record, and the stored bytes of its planes in the order of the file."""

    record: Json
    planes: tuple[int, ...]

    @property
    def placed_bytes(self) -> int:
        """With the padding that follows each plane."""
        return sum(align(plane, wire.CHUNK_ALIGNMENT) for plane in self.planes)

    @property
    def stored_bytes(self) -> int:
        """Without padding."""
        return sum(self.planes)


def store(record: Json, encoded: Encoded, codec: str) -> SizedTensor:
    """Encode all chunks as the packer will, and note their sizes. `record` is the tensor's without streams."""
    streams: list[Json] = []
    planes: list[int] = []
    for stream in encoded.streams:
        rows, entropies = [], [0.0] * n_planes(stream.dtype)
        for chunk in _chunks(stream, codec):
            row = [chunk.n_elements]
            for number, plane in enumerate(chunk.planes):
                row += [len(plane.stored), plane.codec, plane.crc32]
                planes.append(len(plane.stored))
                entropies[number] += plane.entropy_bits or 0
            rows.append(row)
        streams.append(
            {
                "role": stream.role,
                "dtype": stream.dtype,
                "n": stream.elements.size,
                "chunks": rows,
                "entropy_bits": [round(bits) for bits in entropies],
            }
        )
    streams += [
        {"role": role, "dtype": s.dtype, "n": s.elements.size, "same_as": 0}
        for role, (s, _) in encoded.same_as.items()
    ]
    return SizedTensor({**record, "streams": streams}, tuple(planes))


def _chunks(stream: StreamData, codec: str) -> list[EncodedChunk]:
    return [encode_chunk(part, stream.dtype, codec) for part in stream.chunks()]


class Ledger(Protocol):
    """Bytes of what a size is asked for: a file, or the memory that its model needs. `unit`: bytes, and of what."""

    unit: ClassVar[str]

    def knowing(self, more: Mapping[str, SizedTensor]) -> Self:
        """With more tensors known."""
        ...

    def counts(self, name: str) -> bool:
        """Whether the bytes of this tensor matter."""
        ...

    def n_bytes(self, expected: Mapping[str, float]) -> int:
        """In all, when the tensors that are not known take the bytes in the file that are expected, with padding."""
        ...


@dataclass(frozen=True)
class FileLedger:
    """`segments` are names with the names of their tensors, tied ones left out; `known` what is stored so far."""

    unit: ClassVar[str] = "bytes"

    segments: tuple[tuple[str, tuple[str, ...]], ...]
    alignment: int
    assets: tuple[SizedTensor, ...]
    metadata: Mapping[str, str]
    identity: bool = False
    """Whether the file will have content digests."""
    known: Mapping[str, SizedTensor] = field(default_factory=dict)
    _n_compressed: int = 0
    _index_bytes: float = 0.0

    @classmethod
    def begin(
        cls,
        segments: tuple[tuple[str, tuple[str, ...]], ...],
        alignment: int,
        assets: Sequence[Asset],
        metadata: Mapping[str, str],
        *,
        identity: bool,
    ) -> Self:
        """Nothing is known but the assets."""
        stored = tuple(_store_asset(asset) for asset in assets)
        return cls(segments, alignment, stored, metadata, identity).knowing({})

    def knowing(self, more: Mapping[str, SizedTensor]) -> Self:
        """With more tensors known."""
        known = {**self.known, **more}
        missing = sum(len(names) for _, names in self.segments) - len(known)
        if missing and len(known) < _GROWTH * self._n_compressed:
            # Not worth compressing the index again.
            return replace(self, known=known)
        records: list[Json] = [
            known[name].record | self._digest(name)
            for _, names in self.segments
            for name in names
            if name in known
        ]
        root: Json = {
            "segment_alignment": self.alignment,
            "segments": [{"name": name, "n_tensors": len(names)} for name, names in self.segments],
            "tensors": records,
            "assets": [asset.record for asset in self.assets],
            "metadata": dict(self.metadata),
            **self._digest(""),
        }
        index_bytes = float(len(compress_index(dump(root), sum(len(names) for _, names in self.segments))))
        if missing:
            each = max(_RECORD_BYTES + _DIGEST_BYTES * self.identity, index_bytes / max(1, len(records)))
            index_bytes = _INDEX_SLACK * (index_bytes + missing * each)
        return replace(self, known=known, _n_compressed=len(known), _index_bytes=index_bytes)

    def _digest(self, name: str) -> Json:
        """Digits that compress as little as those of the content."""
        return {"content": sha256(name.encode()).hexdigest()} if self.identity else {}

    def counts(self, name: str) -> bool:
        """All do."""
        return True

    def n_bytes(self, expected: Mapping[str, float]) -> int:
        """Size of the file, with `expected` bytes, padding included, of tensors that are not known."""
        offset = wire.HEADER_BYTES
        for _, names in self.segments:
            new = True
            for name in names:
                stored = self.known.get(name)
                for plane in (round(expected.get(name, 0)),) if stored is None else stored.planes:
                    offset = align(offset, self.alignment if new else wire.CHUNK_ALIGNMENT) + plane
                    new = False
        for asset in self.assets:
            for plane in asset.planes:
                offset = align(offset, wire.CHUNK_ALIGNMENT) + plane
        return align(offset, wire.CHUNK_ALIGNMENT) + round(self._index_bytes) + wire.TRAILER_BYTES

    @property
    def asset_bytes(self) -> int:
        """Stored bytes of the assets."""
        return sum(asset.stored_bytes for asset in self.assets)


def _store_asset(asset: Asset) -> SizedTensor:
    raw = np.frombuffer(asset.data, np.uint8)
    chunks = [encode_text(raw[i : i + _ASSET_CHUNK_BYTES]) for i in range(0, raw.size, _ASSET_CHUNK_BYTES)]
    rows = [[c.n_elements, *(n for p in c.planes for n in (len(p.stored), p.codec, p.crc32))] for c in chunks]
    record: Json = {
        "name": asset.name,
        "stream": {"role": "asset", "dtype": "u8", "n": raw.size, "chunks": rows},
    }
    return SizedTensor(record, tuple(len(plane.stored) for chunk in chunks for plane in chunk.planes))
