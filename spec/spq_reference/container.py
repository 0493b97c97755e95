"""FORMAT.md 2 and 3: header, trailer, digest, features, layout, and all checks that need no decoding."""

import hashlib
import zlib

import zstandard

from spq_reference import text
from spq_reference.codecs import check_window
from spq_reference.errors import Checksum, Corrupt, NotSpq, Truncated, Unsupported, require, within
from spq_reference.files import check_files
from spq_reference.records import Index, Plane, Stream, read_index
from spq_reference.schemes import check_tensor

MAGIC = bytes.fromhex("93535051 0d0a1a0a")
# > Required bits 13 and 63 are never used.
REQUIRED = (
    "zstd", "rans", "uniform", "grouped", "supergroups", "outliers", "permutation", "channel_order",
    "activation_clamp", "activation_quantization", "tied", "shared_streams", "shard",
    None,
    "small_floats", "complex", "levels", "supergroup_minimums", "group_rows", "stacked_transposed", "view",
    "dense_order", "named_schemes", "chunk_alignment", "trellis",
)  # fmt: skip
KNOWN = sum(1 << bit for bit, feature in enumerate(REQUIRED) if feature)


def read_container(data: bytes) -> Index:
    """Return the index of a whole file, with every byte outside the chunks checked, and the chunks' checksums."""
    # > The header is 64 bytes: magic (8 bytes), major (`u16`), minor (`u16`), 52 bytes that MUST be zero. The magic is
    # > `93 53 50 51 0d 0a 1a 0a` in hex.
    if data[:8] != MAGIC:
        raise NotSpq("the first 8 bytes are not the magic")
    # > The header's major version is checked before anything that follows it, and the required features before the
    # > index is decoded, so that a newer file is never called damaged.
    if len(data) < 10:
        raise Truncated("the file ends in its header")
    # > A reader MUST refuse a file whose major version it does not know, and a file with a required feature bit that it
    # > does not know; the error names the version or the bit, and is not the error for damage.
    major = int.from_bytes(data[8:10], "little")
    if major != 1:
        raise Unsupported(f"major version {major}")
    if len(data) < 64 + 96:
        raise Truncated("the file is shorter than header and trailer")
    # > The trailer is the last 96 bytes of the file:
    trailer = data[-96:]
    if trailer[88:] != MAGIC:
        raise Truncated("the file does not end with the magic")
    require(not any(data[12:64]), "header: bytes that are not zero")
    index_offset, stored_bytes, raw_bytes, file_bytes, required, _optional = (
        int.from_bytes(trailer[at : at + 8], "little") for at in range(32, 80, 8)
    )
    if file_bytes > len(data):
        raise Truncated("file_bytes passes the length of the file")
    # > Major and minor MUST equal the header's. `file_bytes` MUST equal the length of the file, and `index_offset +
    # > index_stored_bytes + 96` MUST equal `file_bytes`, computed without overflow. `index_offset` MUST be at least 64.
    require(trailer[80:84] == data[8:12], "trailer: version is not the header's")
    # > | 84 | u32 | MUST be zero |
    require(not any(trailer[84:88]), "trailer: bytes that are not zero")
    require(file_bytes == len(data), "trailer: file_bytes")
    require(index_offset + stored_bytes + 96 == file_bytes, "trailer: place of the index")
    require(index_offset >= 64, "trailer: index_offset")
    # > | 0 | 32 bytes | digest: SHA-256 of trailer bytes 32 to 95 followed by the stored index |
    stored = data[index_offset:-96]
    if hashlib.sha256(trailer[32:] + stored).digest() != trailer[:32]:
        raise Checksum("the digest does not match")
    unknown = required & ~KNOWN
    if unknown:
        raise Unsupported(f"required feature bit {(unknown & -unknown).bit_length() - 1}")
    index = read_index(text.parse(index_text(stored, raw_bytes)))
    for tensor in index.tensors:
        check_tensor(tensor, index.used)
    # > A required bit MUST be set when the file uses what it stands for; a reader MUST refuse a file that uses a
    # > feature without its bit.
    for bit, feature in enumerate(REQUIRED):
        require(feature not in index.used or required >> bit & 1 == 1, f"{feature} is used but not declared")
    check_layout(data, index, index_offset)
    check_files(index, len(data))
    return index


def index_text(stored: bytes, raw_bytes: int) -> bytes:
    """Return the JSON text of the index."""
    # > A reader MUST check the digest before it decodes the index, and the limits of section 9 before it allocates.
    within(raw_bytes, 67108864, "index_raw_bytes")
    # > `index_raw_bytes` MUST NOT pass `index_ratio * index_stored_bytes + index_slack_bytes`.
    within(raw_bytes, 64 * len(stored) + 65536, "index_raw_bytes")
    # > When `index_stored_bytes` equals `index_raw_bytes` the stored index is the JSON text itself; otherwise it is one
    # > zstd frame (RFC 8878, no dictionary, with its content size present) that decodes to `index_raw_bytes` bytes,
    # > with nothing behind it.
    if len(stored) == raw_bytes:
        return stored
    try:
        parameters = zstandard.get_frame_parameters(stored)
        require(stored[:4] == bytes.fromhex("28b52ffd"), "index: not a zstd frame")
        require(parameters.dict_id == 0 and parameters.content_size == raw_bytes, "index: zstd frame header")
        check_window(parameters.window_size, raw_bytes)
        return zstandard.ZstdDecompressor().decompress(stored, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Corrupt(f"index: {error}") from error


def align(x: int, a: int) -> int:
    """Return the smallest multiple of `a` that is not below `x`."""
    # > `align(x, a)` is the smallest multiple of `a` that is not below `x`.
    return -(-x // a) * a


def check_layout(data: bytes, index: Index, index_offset: int) -> None:
    """Give every plane its offset; check padding, checksums and that no byte is left over."""
    end = 64
    placed: list[Plane] = []
    gaps: list[tuple[int, int]] = []

    def place(streams: list[Stream], alignment: int) -> None:
        nonlocal end
        for stream in streams:
            for _, planes in stream.chunks:
                for plane in planes:
                    plane.offset = align(end, alignment)
                    alignment = index.chunk_alignment
                    gaps.append((end, plane.offset))
                    placed.append(plane)
                    end = plane.offset + plane.stored_bytes

    # > The first segment begins at `align(64, segment_alignment)`; each later segment begins at `align(e,
    # > segment_alignment)`, where `e` is the end of the last chunk before it. Within a segment, and among the assets,
    # > each plane of each chunk begins at `align(e, chunk_alignment)`, with `e` the end of the one before it (64 where
    # > there is none). A plane of 0 bytes has its place like any other: it begins, and ends, where a longer one would
    # > begin. A segment without chunks takes no room. The chunks of a segment follow each other in the order of
    # > tensors, of the streams of a tensor, of the chunks of a stream, and of the planes of a chunk.
    tensors = iter(index.tensors)
    for n_tensors in index.segments:
        streams = [stream for _ in range(n_tensors) for stream in next(tensors).streams.values()]
        place(streams, index.segment_alignment)
    # > The assets' chunks follow the last segment in the order of the assets. `index_offset` MUST equal `align(e, 64)`
    # > after the last chunk (after the header when there is none).
    place(list(index.assets.values()), index.chunk_alignment)
    require(index_offset == align(end, 64), "the index does not follow the last chunk")
    # > The `raw_bytes` of all chunks together MUST NOT pass `expansion_ratio * file_bytes + expansion_slack_bytes`.
    within(sum(plane.raw_bytes for plane in placed), 1024 * len(data) + 268435456, "raw_bytes of all chunks")
    for gap_begin, gap_end in [*gaps, (end, index_offset)]:
        check_padding(data, gap_begin, gap_end)
    for plane in placed:
        check_crc(data, plane)


def check_padding(data: bytes, begin: int, end: int) -> None:
    """Check the bytes between two parts."""
    # > Padding bytes, which are those between the parts, MUST be zero; a reader that verifies a whole file MUST check
    # > them.
    require(not any(data[begin:end]), f"bytes {begin} to {end} are not zero")


def check_crc(data: bytes, plane: Plane) -> None:
    """Check the stored bytes of a plane."""
    # > `crc32` is the CRC-32 of the stored bytes (polynomial 0xEDB88320 reflected, as in zlib and Ethernet). A reader
    # > MUST check it before it hands out anything decoded from the chunk.
    if zlib.crc32(data[plane.offset : plane.offset + plane.stored_bytes]) != plane.crc32:
        raise Checksum(f"the chunk at {plane.offset} does not match its CRC")
