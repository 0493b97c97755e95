"""Stored bytes of a part -> its decoded bytes, checked, in memory that the caller owns."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from spqfmt import wire
from spqfmt.codecs.base import Bytes
from spqfmt.codecs.elements import check_packed
from spqfmt.container import planes
from spqfmt.errors import FormatError
from spqfmt.kernels import native
from spqfmt.residency.parts import Part
from spqfmt.schemes.registry import SCHEMES
from spqfmt.schemes.trellis import unfold_rows


def check_part(part: Part, stored: Bytes, path: Path) -> None:
    """Compare every chunk of `stored` (part.stored_bytes) with its CRC-32.

    Raises ChecksumError, or CorruptError where the stored bytes are lent as they are and are no elements; both name
    file and tensor.
    """
    with located(part, path):
        planes.check_jobs(stored, part.jobs)
        if part.is_stored_as_decoded:
            _check_elements(part, stored)


def decode_part(
    part: Part, stored: Bytes, scratch: Bytes, out: Bytes, path: Path, *, checked: bool, n_threads: int = 1
) -> None:
    """Fill `out` (part.decoded_bytes) from `stored` through `scratch` (part.work_bytes or more).

    `checked`: check_part has seen `stored`; else every chunk is compared with its CRC-32 here. Raises ChecksumError or
    CorruptError that names file and tensor; `out` is unspecified then.
    """
    target = scratch[: part.decoded_bytes] if part.work_bytes else out
    with located(part, path):
        planes.decode_jobs(stored, part.jobs, target, checked=checked, n_threads=n_threads)
        _check_elements(part, target)
        if part.tiles is not None:
            codes = target.view(np.int8).reshape(part.stop - part.first, -1)
            unfold_rows(part.tiles, part.first, codes, n_threads)
    dtype = wire.DTYPES[part.dtype]
    if part.is_turned:
        width = part.record.matrix_shape[0]
        native.turn(target, part.stop - part.first, width, bits=dtype.bits, dst=out, n_threads=n_threads)
    for merge in part.merges:
        native.merge_planes(
            scratch[merge.scratch_offset : merge.scratch_offset + merge.n_bytes],
            dtype.bits // 8,
            dtype.rotate,
            out[merge.out_offset : merge.out_offset + merge.n_bytes],
        )


def _check_elements(part: Part, decoded: Bytes) -> None:
    if wire.DTYPES[part.dtype].bits <= 8:
        check_packed(decoded, part.dtype, part.n_weights)


@contextmanager
def located(part: Part, path: Path) -> Iterator[None]:
    """Errors from inside name file, tensor and stream, and the place in the file of the plane that they are about."""
    try:
        yield
    except FormatError as error:
        if error.offset is None:
            error.offset = part.planes[error.job or 0].offset
        role = SCHEMES[part.record.scheme].weights
        error.args = (f"{path}: tensor {part.record.name!r}, {role}: {error}",)
        raise
