"""Header and trailer (FORMAT.md 2.1 and 2.2)."""

import hashlib
import struct
from dataclasses import dataclass

from spqfmt import wire
from spqfmt.container.features import ALL_REQUIRED
from spqfmt.errors import (
    ChecksumError,
    CorruptError,
    LimitError,
    NotSpqError,
    TruncatedError,
    UnsupportedError,
)
from spqfmt.stand_ins import what_came_instead

_HEADER = struct.Struct("<8sHH52s")
_TRAILER = struct.Struct("<32sQQQQQQHHI8s")
_DIGEST_BYTES = 32
SHORTEST_FILE_BYTES = wire.HEADER_BYTES + wire.TRAILER_BYTES


@dataclass(frozen=True)
class Trailer:
    """The numbers at the end of a file. Feature sets are bit masks."""

    index_offset: int
    index_stored_bytes: int
    index_raw_bytes: int
    file_bytes: int
    required: int
    optional: int
    digest: bytes = b""

    @property
    def minor(self) -> int:
        """The lowest minor version that knows all features of the file."""
        is_1_1 = self.required >> wire.MINOR_1_FIRST_REQUIRED or self.optional >> wire.MINOR_1_FIRST_OPTIONAL
        return 1 if is_1_1 else 0

    def pack(self, stored_index: bytes) -> bytes:
        """Return the trailer's bytes, digest included."""
        body = _TRAILER.pack(
            bytes(_DIGEST_BYTES),
            self.index_offset,
            self.index_stored_bytes,
            self.index_raw_bytes,
            self.file_bytes,
            self.required,
            self.optional,
            wire.FORMAT_MAJOR,
            self.minor,
            0,
            wire.MAGIC,
        )[_DIGEST_BYTES:]
        return hashlib.sha256(body + stored_index).digest() + body


def pack_header(minor: int) -> bytes:
    """Return the bytes of a file's header."""
    return _HEADER.pack(wire.MAGIC, wire.FORMAT_MAJOR, minor, b"")


def check_header(header: bytes, file_bytes: int) -> tuple[int, int]:
    """Major and minor version of a header of up to 64 bytes."""
    if header[:8] != wire.MAGIC:
        raise NotSpqError(what_came_instead(header) or "not a .spq file", 0)
    if len(header) >= 10 and (major := int.from_bytes(header[8:10], "little")) != wire.FORMAT_MAJOR:
        raise UnsupportedError(
            f"format version {major}, this spqfmt reads {wire.FORMAT_MAJOR}; update spqfmt",
            f"version {major}",
            8,
        )
    if file_bytes < SHORTEST_FILE_BYTES:
        raise TruncatedError(f"the file ends after {file_bytes} bytes", file_bytes)
    _, major, minor, zeros = _HEADER.unpack(header)
    if any(zeros):
        raise CorruptError("the header's last 52 bytes are not zero", 12)
    return major, minor


def parse_trailer(data: bytes, version: tuple[int, int], file_bytes: int) -> Trailer:
    """The trailer of a file of `file_bytes` whose header has `version`. The digest is checked apart."""
    at = file_bytes - wire.TRAILER_BYTES
    digest, *numbers, major, minor, zero, magic = _TRAILER.unpack(data)
    offset, stored_bytes, raw_bytes, claimed_bytes, required, optional = numbers
    trailer = Trailer(
        index_offset=offset,
        index_stored_bytes=stored_bytes,
        index_raw_bytes=raw_bytes,
        file_bytes=claimed_bytes,
        required=required,
        optional=optional,
        digest=digest,
    )
    if magic != wire.MAGIC or trailer.file_bytes > file_bytes:
        raise TruncatedError("the file ends before its end is due", file_bytes)
    if (major, minor) != version or zero:
        raise CorruptError("header and trailer disagree", at)
    _check_features(trailer.required, at + 64)
    end = trailer.index_offset + trailer.index_stored_bytes + wire.TRAILER_BYTES
    if trailer.file_bytes != file_bytes or end != file_bytes:
        raise CorruptError("the trailer's sizes do not add up to the file", at)
    if trailer.index_offset < wire.HEADER_BYTES:
        raise CorruptError("the index lies in the header", at)
    _check_index_size(trailer, at)
    return trailer


def _check_features(required: int, at: int) -> None:
    unknown = required & ~ALL_REQUIRED
    if unknown:
        bit = unknown.bit_length() - 1
        raise UnsupportedError(
            f"needs feature bit {bit}, which this spqfmt does not know; update it", f"bit {bit}", at
        )


def _check_index_size(trailer: Trailer, at: int) -> None:
    earned = wire.INDEX_RATIO * trailer.index_stored_bytes + wire.INDEX_SLACK_BYTES
    if trailer.index_raw_bytes > min(wire.MAX_INDEX_RAW_BYTES, earned):
        raise LimitError(f"{trailer.index_stored_bytes} bytes of index claim {trailer.index_raw_bytes}", at)
    if trailer.file_bytes > wire.MAX_FILE_BYTES:
        raise LimitError(f"the file has more than {wire.MAX_FILE_BYTES} bytes", at)


def check_digest(trailer: Trailer, trailer_bytes: bytes, stored_index: bytes) -> None:
    """SHA-256 over the trailer's rest and the stored index."""
    if hashlib.sha256(trailer_bytes[_DIGEST_BYTES:] + stored_index).digest() != trailer.digest:
        raise ChecksumError("the index does not match its digest", trailer.index_offset)
