"""Stored bytes of chunk planes -> checked, decoded bytes: the one way, whoever reads (FORMAT.md 3.2 and 4).

What is left to do after it depends on the dtype: merging planes to elements, or unpacking them (elements.py).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from spqfmt.codecs.base import Bytes
from spqfmt.codecs.registry import CODECS_BY_ID, decode_into
from spqfmt.errors import ChecksumError, FormatError
from spqfmt.kernels import native
from spqfmt.records import PlaneChunk


def check(stored: Bytes, crc32: int) -> None:
    """Raise ChecksumError unless the stored bytes of a plane have this CRC-32."""
    compare(native.crc32(stored), crc32)


def compare(found: int, crc32: int) -> None:
    """Raise ChecksumError unless this is the CRC-32 that was found."""
    if found != crc32:
        raise ChecksumError("a chunk does not match its checksum")


def decode(plane: PlaneChunk, stored: Bytes, out: Bytes) -> None:
    """Check the stored bytes of a plane and decode them into `out`, uint8 of its raw size. Raises FormatError."""
    check(stored, plane.crc32)
    decode_into(plane.codec, stored, out)


def jobs_of(planes: Sequence[PlaneChunk]) -> NDArray[np.int64]:
    """Rows of native.DECODE_JOB_COLUMNS: planes that lie in the file in this order are decoded one behind the other.

    Places in the stored bytes count from the first plane.
    """
    jobs, at = [], 0
    for plane in planes:
        begin = plane.offset - planes[0].offset
        jobs.append((begin, plane.stored_bytes, plane.codec, plane.crc32, at, plane.raw_bytes))
        at += plane.raw_bytes
    return np.array(jobs, np.int64)


def check_jobs(stored: Bytes, jobs: NDArray[np.int64]) -> None:
    """`check` for every job; the error has the number of the first bad one as its attribute `job`."""
    for number, (begin, size, _, crc32, _, _) in enumerate(jobs.tolist()):
        try:
            check(stored[begin : begin + size], crc32)
        except FormatError as error:
            error.job = number
            raise


def decode_jobs(
    stored: Bytes, jobs: NDArray[np.int64], out: Bytes, *, checked: bool, n_threads: int = 1
) -> None:
    """Decode many planes into their places in `out`, on `n_threads` threads where all codecs are native.

    `checked` says that `check_jobs` has seen these stored bytes; else they are checked in the same pass. Raises
    FormatError with the attribute `job`; `out` is unspecified then.
    """
    if not all(CODECS_BY_ID[codec].is_native for codec in np.unique(jobs[:, 2]).tolist()):
        if not checked:
            check_jobs(stored, jobs)
        _decode_one_by_one(stored, jobs, out, n_threads)
    elif checked:
        native.decode_verified_chunks(stored, jobs, out, n_threads)
    else:
        native.decode_chunks(stored, jobs, out, n_threads)


def _decode_one_by_one(stored: Bytes, jobs: NDArray[np.int64], out: Bytes, n_threads: int) -> None:
    for number, (begin, size, codec, _, at, raw_bytes) in enumerate(jobs.tolist()):
        try:
            if CODECS_BY_ID[codec].is_native:
                native.decode_verified_chunks(stored, jobs[number : number + 1], out, n_threads)
            else:
                decode_into(codec, stored[begin : begin + size], out[at : at + raw_bytes])
        except FormatError as error:
            error.job = number
            raise
