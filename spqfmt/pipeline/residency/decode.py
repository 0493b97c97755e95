"""Stored bytes of a part -> its decoded bytes, checked, in memory that the caller owns."""

from pathlib import Path

from spqfmt import wire
from spqfmt.codecs.base import Bytes
from spqfmt.codecs.registry import decode_into
from spqfmt.errors import ChecksumError, FormatError
from spqfmt.kernels import native
from spqfmt.pipeline.residency.parts import Part


def decode_part(part: Part, stored: Bytes, scratch: Bytes, out: Bytes, path: Path) -> None:
    """Fill `out` (part.decoded_bytes) from `stored` (part.stored_bytes) through `scratch` (part.scratch_bytes or more).

    Every chunk is checked against its CRC-32 first. Raises ChecksumError or CorruptError that names file and tensor;
    `out` is unspecified then.
    """
    target = scratch[: part.scratch_bytes] if part.merges else out
    try:
        _decode_planes(part, stored, target)
    except FormatError as error:
        if error.offset is None:
            error.offset = part.planes[getattr(error, "job", 0)].offset
        error.args = (f"{path}: tensor {part.record.name!r}: {error}",)
        raise
    dtype = wire.DTYPES[part.dtype]
    for merge in part.merges:
        native.merge_planes(
            scratch[merge.scratch_offset : merge.scratch_offset + merge.n_bytes],
            dtype.bits // 8,
            dtype.rotate,
            out[merge.out_offset : merge.out_offset + merge.n_bytes],
        )


def _decode_planes(part: Part, stored: Bytes, target: Bytes) -> None:
    by_zstd = part.jobs[:, 2] == wire.CODEC_ZSTD
    if not by_zstd.any():
        native.decode_chunks(stored, part.jobs, target, 1)
        return
    for number, (src, size, codec, crc32, dst, raw_bytes) in enumerate(part.jobs.tolist()):
        if not by_zstd[number]:
            native.decode_chunks(stored, part.jobs[number : number + 1], target, 1)
            continue
        chunk = stored[src : src + size]
        if native.crc32(chunk) != crc32:
            raise ChecksumError("a chunk does not match its checksum", part.offset + src)
        decode_into(codec, chunk, target[dst : dst + raw_bytes])
