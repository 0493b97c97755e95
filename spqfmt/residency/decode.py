"""Stored bytes of a part -> its decoded bytes, checked, in memory that the caller owns."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spqfmt import wire
from spqfmt.codecs.base import Bytes
from spqfmt.codecs.registry import decode_into
from spqfmt.errors import ChecksumError, FormatError
from spqfmt.kernels import native
from spqfmt.residency.parts import Part


def check_part(part: Part, stored: Bytes, path: Path) -> None:
    """Compare every chunk of `stored` (part.stored_bytes) with its CRC-32.

    Raises ChecksumError that names file and tensor.
    """
    with _located(part, path):
        for src, size, _, crc32, _, _ in part.jobs.tolist():
            if native.crc32(stored[src : src + size]) != crc32:
                raise ChecksumError("checksum of the stored bytes is wrong", part.offset + src)


def decode_part(
    part: Part, stored: Bytes, scratch: Bytes, out: Bytes, path: Path, *, checked: bool, n_threads: int = 1
) -> None:
    """Fill `out` (part.decoded_bytes) from `stored` through `scratch` (part.work_bytes or more).

    `checked`: check_part has seen `stored`; else every chunk is compared with its CRC-32 here. Raises ChecksumError or
    CorruptError that names file and tensor; `out` is unspecified then.
    """
    if part.has_zstd and not checked:
        check_part(part, stored, path)
        checked = True
    target = scratch[: part.decoded_bytes] if part.work_bytes else out
    with _located(part, path):
        if part.has_zstd:
            _decode_one_by_one(part, stored, target, n_threads)
        elif checked:
            native.decode_verified_chunks(stored, part.jobs, target, n_threads)
        else:
            native.decode_chunks(stored, part.jobs, target, n_threads)
    dtype = wire.DTYPES[part.dtype]
    if part.is_turned:
        width = part.record.matrix_shape[0]
        native.turn(target, part.stop - part.first, width, dtype.bits, out, n_threads)
    for merge in part.merges:
        native.merge_planes(
            scratch[merge.scratch_offset : merge.scratch_offset + merge.n_bytes],
            dtype.bits // 8,
            dtype.rotate,
            out[merge.out_offset : merge.out_offset + merge.n_bytes],
        )


def _decode_one_by_one(part: Part, stored: Bytes, target: Bytes, n_threads: int) -> None:
    for number, (src, size, codec, _, dst, raw_bytes) in enumerate(part.jobs.tolist()):
        if codec == wire.CODEC_ZSTD:
            decode_into(codec, stored[src : src + size], target[dst : dst + raw_bytes])
        else:
            native.decode_verified_chunks(stored, part.jobs[number : number + 1], target, n_threads)


@contextmanager
def _located(part: Part, path: Path) -> Iterator[None]:
    try:
        yield
    except FormatError as error:
        if error.offset is None:
            error.offset = part.planes[getattr(error, "job", 0)].offset
        error.args = (f"{path}: tensor {part.record.name!r}: {error}",)
        raise
