"""Writes a .spq file in one pass under a temporary name; only a whole file gets the final one (FORMAT.md section 2)."""

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from math import ceil
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import NamedTuple, Self

import numpy as np

from spqfmt import wire
from spqfmt.codecs.chunks import EncodedChunk, EncodedPlane
from spqfmt.codecs.registry import decode_into
from spqfmt.container.encode import compress_index, encode_text
from spqfmt.container.features import (
    index_features,
    optional_features,
    optional_mask,
    optional_tensor_features,
    required_mask,
    tensor_features,
)
from spqfmt.container.index import parse_index
from spqfmt.container.strict_json import Json, dump, without
from spqfmt.container.temporary import open_temporary, publish, refuse_existing
from spqfmt.container.trailer import Trailer, pack_header
from spqfmt.errors import EncodeError, FormatError
from spqfmt.kernels import native
from spqfmt.kernels.json_text import check_json
from spqfmt.records import align, chunk_raw_bytes
from spqfmt.schemes.registry import SCHEMES

_ASSET_CHUNK_BYTES = 1 << 20


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
    """One file being written. Leaving the context before `publish` removes what was written."""

    def __init__(self, path: str | os.PathLike[str], segment_alignment: int, *, force: bool) -> None:
        self.path = Path(path)
        self._force = force
        refuse_existing(self.path, force)
        self._alignment = segment_alignment
        self._temporary, self._file = open_temporary(self.path)
        self._offset = 0
        self._raw_bytes = 0
        self._new_segment = True
        self._segments: list[Json] = []
        self._first_of_segment = 0
        self._tensors: list[Json] = []
        self._numbers: dict[str, int] = {}
        self._assets: list[Json] = []

    def __enter__(self) -> Self:
        try:
            self._put(pack_header(0))  # seal knows the minor version
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._discard()

    def _discard(self) -> None:
        with suppress(OSError):  # what a full disk did not take is thrown away with the rest
            self._file.close()
        self._temporary.unlink(missing_ok=True)

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
    def tensors(self) -> Sequence[Json]:
        """The records of the tensors so far."""
        return self._tensors

    @property
    def temporary(self) -> Path:
        """Where the file is until it is published or thrown away."""
        return self._temporary

    @property
    def offset(self) -> int:
        """Bytes written so far."""
        return self._offset

    def add_tensor(
        self,
        record: Json,
        streams: Iterable[tuple[Json, Iterable[EncodedChunk]]],
        same_as: Mapping[str, tuple[Json, str]],
    ) -> int:
        """Append a tensor: its record without streams, and for each stream its record without chunks and its chunks.

        `same_as` gives, by role, the record of a stream that an earlier tensor of this file holds, and that tensor's
        name. Returns the stored bytes with padding.
        """
        begin = self._offset
        self._numbers[str(record["name"])] = len(self._tensors)
        self._tensors.append(record)
        records = [self._put_stream(stream, chunks) for stream, chunks in streams]
        for stream, tensor in same_as.values():
            records.append({**stream, "same_as": self._numbers[tensor]})
        if records:
            order = SCHEMES[str(record["scheme"])].roles
            record["streams"] = sorted(records, key=lambda stream: order.index(str(stream["role"])))
        self._segments[-1]["n_tensors"] = len(self._tensors) - self._first_of_segment
        return self._offset - begin

    def _put_stream(self, stream: Json, chunks: Iterable[EncodedChunk]) -> Json:
        rows: list[list[int]] = []
        entropies: list[Sequence[float | None]] = []
        for chunk in chunks:
            row = [chunk.n_elements]
            raw_bytes = chunk_raw_bytes(str(stream["dtype"]), chunk.n_elements)
            for encoded in chunk.planes:
                self._pad(self._alignment if self._new_segment else wire.CHUNK_ALIGNMENT)
                self._new_segment = False
                plane = self._within_expansion(encoded, raw_bytes)
                self._put(plane.stored)
                row += [len(plane.stored), plane.codec, plane.crc32]
            rows.append(row)
            entropies.append([plane.entropy_bits for plane in chunk.planes])
        totals = []
        for bits in zip(*entropies, strict=True):
            known = [b for b in bits if b is not None]
            # Of copied chunks the record of their stream says what is known.
            totals += [ceil(sum(known))] if len(known) == len(bits) else []
        return {**stream, "chunks": rows} | ({"entropy_bits": totals} if totals else {})

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
        raw = np.frombuffer(data, np.uint8)
        chunks = [
            encode_text(raw[i : i + _ASSET_CHUNK_BYTES]) for i in range(0, raw.size, _ASSET_CHUNK_BYTES)
        ]
        self.copy_asset({"name": name}, {"role": "asset", "dtype": "u8", "n": raw.size}, chunks)

    def copy_asset(self, record: Json, stream: Json, chunks: Iterable[EncodedChunk]) -> None:
        """Append an asset that is encoded already, its record without stream; no tensor may follow."""
        self._new_segment = False
        self._assets.append({**record, "stream": self._put_stream(stream, chunks)})

    def seal(
        self,
        metadata: Mapping[str, str],
        partial_plan: Json | None = None,
        shard: Mapping[str, int] | None = None,
        path: Path | None = None,
        unknown: Unknown = NOTHING_UNKNOWN,
        content: str | None = None,
    ) -> Sealed:
        """Write index and trailer and make the file durable; `publish` then gives it its name.

        `path` replaces the name given at first: a shard learns the number of shards at the end.
        """
        self.path = self.path if path is None else path
        self._pad(wire.CHUNK_ALIGNMENT)
        root: Json = {
            **unknown.keys,
            "segment_alignment": self._alignment,
            "segments": self._segments,
            "tensors": self._tensors,
            "assets": self._assets,
            "metadata": dict(metadata),
        }
        root |= {} if partial_plan is None else {"partial_plan": partial_plan}
        root |= {} if shard is None else {"shard": dict(shard)}
        root |= {} if content is None else {"content": content}
        text = dump(root)
        if len(text) > wire.MAX_INDEX_RAW_BYTES:
            # Digests are the one thing in an index that can be left out.
            root.pop("content", None)
            text = dump(root | {"tensors": [without(tensor, "content") for tensor in self._tensors]})
        stored = compress_index(text, len(self._tensors))
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
            self._offset,
            stored_bytes,
            len(text),
            file_bytes,
            required_mask(used),
            optional_mask(maybe) | optional,
        )

    def publish(self) -> None:
        """Give the sealed file its name, for good."""
        publish(self._temporary, self.path, force=self._force)
