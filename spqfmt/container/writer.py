"""Writes a .spq file in one pass under a temporary name; only a whole file gets the final one (FORMAT.md section 2)."""

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Self

import numpy as np

from spqfmt import wire
from spqfmt.codecs.chunks import EncodedChunk, EncodedPlane
from spqfmt.codecs.registry import decode_into
from spqfmt.container.alignment import align
from spqfmt.container.encode import compress_index, encode_asset
from spqfmt.container.features import (
    index_features,
    optional_features,
    optional_mask,
    optional_tensor_features,
    required_mask,
    tensor_features,
)
from spqfmt.container.index import asset_json, parse_index, root_json
from spqfmt.container.stream_records import store_stream
from spqfmt.container.strict_json import Json, dump, without
from spqfmt.container.temporary import discard, open_temporary, publish, refuse_existing
from spqfmt.container.tensor_records import store_tensor, tensor_json
from spqfmt.container.trailer import Trailer, pack_header
from spqfmt.errors import EncodeError, FormatError
from spqfmt.kernels import native
from spqfmt.kernels.json_text import check_json
from spqfmt.records import AssetRecord, Shard, Stream, TensorRecord


class Sealed(NamedTuple):
    """A whole file: its name to be, its size and its digest."""

    path: Path
    file_bytes: int
    digest: bytes


class Unknown(NamedTuple):
    """What a later version of the format may have put into a file: keys of the index's root, bits of optional features.

    It means nothing here, and travels with a file that is written again.
    """

    keys: Mapping[str, object] = MappingProxyType({})
    optional: int = 0


NOTHING_UNKNOWN = Unknown()


class Writer:
    """One file that is being written. Leaving the context before `publish` removes what was written."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        segment_alignment: int,
        *,
        force: bool,
        chunk_alignment: int = wire.CHUNK_ALIGNMENT,
    ) -> None:
        self.path = Path(path)
        self._force = force
        refuse_existing(self.path, force)
        self._alignment, self._chunk_alignment = segment_alignment, chunk_alignment
        self._temporary, self._file = open_temporary(self.path)
        self._offset = 0
        self._raw_bytes = 0
        self._new_segment = True
        self._segments: list[Json] = []
        self._first_of_segment = 0
        self._tensors: list[TensorRecord] = []
        self._like: list[Mapping[str, object]] = []
        self._numbers: dict[str, int] = {}
        self._assets: list[Json] = []

    def __enter__(self) -> Self:
        try:
            self._put(pack_header(0))  # seal knows the minor version
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._discard()

    def _discard(self) -> None:
        with suppress(OSError):  # what a full disk did not take is thrown away with the rest
            self._file.close()
        discard(self._temporary)

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self._offset += len(data)

    def _pad(self, alignment: int) -> None:
        self._put(bytes(align(self._offset, alignment) - self._offset))

    def begin_segment(self, name: str, more: Mapping[str, object] = MappingProxyType({})) -> None:
        """The tensors that follow belong to this segment; it needs at least one. `more` goes into its record."""
        self._segments.append({**more, "name": name, "n_tensors": 0})
        self._first_of_segment = len(self._tensors)
        self._new_segment = True

    @property
    def tensors(self) -> Sequence[TensorRecord]:
        """The records of the tensors so far."""
        return self._tensors

    @property
    def temporary(self) -> Path:
        """Where the file is until it is published or thrown away."""
        return self._temporary

    @property
    def offset(self) -> int:
        """Number of bytes that are written so far."""
        return self._offset

    def add_tensor(
        self,
        record: TensorRecord,
        chunks: Iterable[Iterable[EncodedChunk]],
        same_as: Mapping[str, str] = MappingProxyType({}),
        like: Mapping[str, object] = MappingProxyType({}),
    ) -> int:
        """Append a tensor to the open segment.

        The streams of `record` are those that it holds itself, `chunks` those of each of them. `same_as` says, by role,
        which earlier tensor of this file holds a stream of this one. `like` is the tensor's record in a file that it is
        copied from. Returns the stored bytes with padding.
        """
        begin = self._offset
        shared = [self._shared(role, self._numbers[name]) for role, name in same_as.items()]
        self._numbers[record.name] = len(self._tensors)
        self._tensors.append(store_tensor(record, chunks, shared, self._put_plane))
        self._like.append(like)
        self._segments[-1]["n_tensors"] = len(self._tensors) - self._first_of_segment
        return self._offset - begin

    def _shared(self, role: str, number: int) -> Stream:
        held = self._tensors[number].by_role[role]
        return Stream(role, held.dtype, held.n, same_as=number)

    def _put_plane(self, encoded: EncodedPlane, raw_bytes: int) -> tuple[int, EncodedPlane]:
        self._pad(self._alignment if self._new_segment else self._chunk_alignment)
        self._new_segment = False
        plane = self._within_expansion(encoded, raw_bytes)
        offset = self._offset
        self._put(plane.stored)
        return offset, plane

    def _within_expansion(self, plane: EncodedPlane, raw_bytes: int) -> EncodedPlane:
        """The plane, or its raw bytes: a file must not claim more of them than it earns (FORMAT.md 9).

        Constant chunks of hundreds of MiB would; one that is raw earns a thousand others.
        """
        self._raw_bytes += raw_bytes
        earned = wire.EXPANSION_RATIO * (self._offset + len(plane.stored)) + wire.EXPANSION_SLACK_BYTES
        if self._raw_bytes <= earned:
            return plane
        raw = np.empty(raw_bytes, np.uint8)
        decode_into(plane.codec, np.frombuffer(plane.stored, np.uint8), raw)
        return EncodedPlane(raw.tobytes(), wire.CODEC_RAW, native.crc32(raw), plane.entropy_bits)

    def add_asset(self, name: str, data: bytes) -> None:
        """Append an asset; no tensor may follow."""
        self.copy_asset(AssetRecord(name, Stream("asset", "u8", len(data))), encode_asset(data))

    def copy_asset(
        self,
        asset: AssetRecord,
        chunks: Iterable[EncodedChunk],
        like: Mapping[str, object] = MappingProxyType({}),
    ) -> None:
        """Append an asset that is encoded already; no tensor may follow. `like` is its record in another file."""
        self._new_segment = False
        stored = AssetRecord(asset.name, store_stream(asset.stream, chunks, self._put_plane))
        self._assets.append(asset_json(stored, like))

    def seal(
        self,
        metadata: Mapping[str, str],
        partial_plan: Json | None = None,
        shard: Shard | None = None,
        path: Path | None = None,
        unknown: Unknown = NOTHING_UNKNOWN,
        content: str | None = None,
        sources: Json | None = None,
    ) -> Sealed:
        """Write index and trailer and make the file durable; `publish` then gives it its name.

        `path` replaces the name given at first: a shard learns the number of shards at the end.
        """
        self.path = self.path if path is None else path
        self._pad(wire.CHUNK_ALIGNMENT)
        tensors = self._tensor_json()
        root = dict(unknown.keys) | root_json(
            segment_alignment=self._alignment,
            chunk_alignment=self._chunk_alignment,
            segments=self._segments,
            tensors=tensors,
            assets=self._assets,
            metadata=metadata,
        )
        root |= {} if partial_plan is None else {"partial_plan": partial_plan}
        root |= {} if shard is None else {"shard": asdict(shard)}
        root |= {} if content is None else {"content": content}
        root |= {} if sources is None else {"sources": sources}
        text = dump(root)
        if len(text) > wire.MAX_INDEX_RAW_BYTES:
            # Digests are the one thing in an index that can be left out.
            root.pop("content", None)
            text = dump(root | {"tensors": [without(tensor, "content") for tensor in tensors]})
        stored = compress_index(text, len(tensors))
        earned = wire.INDEX_RATIO * len(stored) + wire.INDEX_SLACK_BYTES
        if len(stored) >= len(text) or len(text) > earned:
            stored = text
        file_bytes = self._offset + len(stored) + wire.TRAILER_BYTES
        trailer = self._checked(text, len(stored), file_bytes, unknown.optional)
        packed = trailer.pack(stored)
        self._put(stored)
        self._put(packed)
        self._file.flush()
        os.pwrite(self._file.fileno(), pack_header(trailer.minor), 0)
        os.fsync(self._file.fileno())
        return Sealed(self.path, file_bytes, packed[:32])

    def _tensor_json(self) -> Sequence[Json]:
        return [tensor_json(record, like) for record, like in zip(self._tensors, self._like, strict=True)]

    def _checked(self, text: bytes, stored_bytes: int, file_bytes: int, optional: int) -> Trailer:
        """What was written must be what a reader accepts; its own validation says so before the file gets its name."""
        try:
            check_json(text)
            index = parse_index(text, self._offset, file_bytes)
            used, maybe = index_features(index), optional_features(index)
            for tensor in index.tensors:
                used |= tensor_features(tensor)
                maybe |= optional_tensor_features(tensor)
        except FormatError as error:
            raise EncodeError(f"{self.path}: cannot be written: {error}") from error
        return Trailer(
            index_offset=self._offset,
            index_stored_bytes=stored_bytes,
            index_raw_bytes=len(text),
            file_bytes=file_bytes,
            required=required_mask(used),
            optional=optional_mask(maybe) | optional,
        )

    def publish(self) -> None:
        """Give the sealed file its name, for good."""
        publish(self._temporary, self.path, force=self._force)
