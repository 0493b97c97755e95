"""The native hot loops, typed. Nothing here imports torch.

Buffers are C-contiguous objects of the buffer protocol, of any element type; they are taken as bytes. What is
written to is owned by the caller and must not overlap what is read. The GIL is released while a kernel runs.
A buffer that is not contiguous or not writable raises ValueError or BufferError (its owner chooses), sizes that
do not fit together raise ValueError.
"""

import sys
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from spqfmt import systems
from spqfmt.kernels import _native

Buffer: TypeAlias = bytes | bytearray | memoryview | np.ndarray[Any, Any]


def rans_encode(src: Buffer, block_log2: int = 0) -> bytes:
    """Return the rans chunk of `src` (FORMAT.md 4.3), whose bytes are the symbols; at least one.

    A block holds 2**block_log2 symbols, 7..16; 0 chooses. The result can be larger than `src`: store it raw
    then. It depends on nothing but the arguments.
    """
    return _native.rans_encode(src, block_log2)


def rans_decode(src: Buffer, dst: Buffer) -> None:
    """Decode the rans chunk `src` into `dst` of exactly its raw size.

    CorruptError says which rule of the format is broken, UnsupportedError that the coder is not known; `dst`
    is unspecified then. Never reads outside `src` nor writes outside `dst`.
    """
    _native.rans_decode(src, dst)


def crc32(src: Buffer, value: int = 0) -> int:
    """Continue the CRC-32 `value` (0 at the start) over `src`; equal to zlib.crc32."""
    return _native.crc32(src, value)


def histogram(src: Buffer) -> npt.NDArray[np.uint64]:
    """Count the byte values of `src`: uint64[256]."""
    counts = np.empty(256, np.uint64)
    _native.histogram(src, counts)
    return counts


def split_planes(src: Buffer, itemsize: int, rotate: bool, dst: Buffer) -> None:
    """Split little-endian elements of `itemsize` bytes (1, 2, 4 or 8) into byte planes, the lowest byte's first.

    With `rotate` every element is rotated left by one bit before: a float's sign moves to bit 0 of the lowest
    plane and its highest plane is pure exponent. `dst` has the size of `src`.
    """
    _native.split_planes(src, itemsize, rotate, dst)


def merge_planes(src: Buffer, itemsize: int, rotate: bool, dst: Buffer) -> None:
    """Put back together what `split_planes` took apart."""
    _native.merge_planes(src, itemsize, rotate, dst)


def pack_bits(src: Buffer, bits: int, dst: Buffer) -> None:
    """Pack elements of `bits`, 2 or 4, that have a byte each: they fill the bytes of `dst`, from the lowest bits on."""
    _native.pack_bits(src, bits, dst)


def take_blocks(layout: npt.NDArray[np.int64], blocks: Buffer, parts: Sequence[Buffer]) -> None:
    """Take blocks apart into elements, a byte each: a buffer for each part of each role, in their order.

    `layout` is the bytes of a block and the number of roles; of each role the elements in a block, the parts that these
    are (each of as many), what a block holds besides an element, the mask of that sum, and what is above all of these
    or 0; of each field its role, where it begins, its runs, the bytes of a run, the elements that a run says something
    of, and the number of its places; and of each place the first bit in a byte and how many, the first element in a
    run and the first bit there.
    """
    _native.take_blocks(layout, blocks, list(parts))


def put_blocks(layout: npt.NDArray[np.int64], parts: Sequence[Buffer], blocks: Buffer) -> int | None:
    """Put together what `take_blocks` takes apart. The first role with an element past its place, or None."""
    role = _native.put_blocks(layout, list(parts), blocks)
    return role if role < layout[1] else None


def turn(src: Buffer, n_channels: int, width: int, bits: int, dst: Buffer, n_threads: int = 1) -> None:
    """Turn codes [n_channels, width] of `bits` (2, 4 or 8), packed as FORMAT.md 3.2 has them, to [width, n_channels].

    `dst` has the size of `src`. `n_threads` as in decode_verified_chunks.
    """
    _native.turn(src, n_channels, width, bits=bits, dst=dst, n_threads=n_threads)


DECODE_JOB_COLUMNS = ("src_offset", "stored_bytes", "codec", "crc32", "dst_offset", "raw_bytes")


def decode_chunks(src: Buffer, jobs: npt.NDArray[np.int64], dst: Buffer, n_threads: int = 1) -> None:
    """Check and decode many chunks of `src` into their places in `dst`, in one pass over the stored bytes.

    `jobs` is int64[n, 6] with the columns DECODE_JOB_COLUMNS; codec is wire.CODEC_RAW or CODEC_RANS; the raw ranges
    must not overlap. `n_threads` at most, the calling one among them, and never more than the process may use.

    ChecksumError, CorruptError or UnsupportedError is that of the lowest bad job, whose number is the exception's
    attribute `job`; `dst` is unspecified then. ValueError: a job that does not fit the buffers, another codec.
    """
    _native.decode_chunks(src, _records(jobs), dst, n_threads)


def decode_verified_chunks(src: Buffer, jobs: npt.NDArray[np.int64], dst: Buffer, n_threads: int = 1) -> None:
    """Decode as `decode_chunks` does, but compare no checksum: it was compared when the bytes came into memory.

    Threads share each chunk, block by block, and are torch's own where torch is loaded. Never ChecksumError.
    """
    _native.decode_verified_chunks(src, _records(jobs), dst, n_threads)


def available_kernels() -> list[str]:
    """Names of the sets of kernels that this machine can run, best first; "scalar" is always the last."""
    return _native.available_kernels()


def kernel_variants() -> list[str]:
    """All sets that this machine can run, also those that it has a faster one of the same name for.

    For tests and measurements: `select_kernels` takes these names too ("avx512:gather").
    """
    return _native.kernel_variants()


def active_kernels() -> str:
    """Name the set of kernels that runs for the calling thread."""
    return _native.active_kernels()


def select_kernels(name: str) -> None:
    """Run another set of kernels from now on for the calling thread, and for native threads that help it.

    "" goes back to the process's default. ValueError: it cannot run here.
    """
    _native.select_kernels(name)


def default_kernels(name: str) -> None:
    """Run this set of kernels in every thread that has selected none. ValueError: it cannot run here."""
    _native.default_kernels(name)


def usable_threads() -> int:
    """Return the number of threads that this process may run at once."""
    return _native.usable_threads()


def startable_threads(n_threads: int) -> int:
    """Return how many of `n_threads`, the calling one among them, the system starts for this process now, by trying."""
    return _native.startable_threads(n_threads)


def _before_fork() -> None:
    """Send torch's threads home if the forking thread has worked with them: a child would wait for them for ever."""
    global _disbanded  # noqa: PLW0603  # what a child must know
    _disbanded = _native.disband_team()


def _after_fork_in_child() -> None:
    """Use no more threads of torch's, in torch's operations too, where its runtime could not part with them."""
    _native.after_fork(_disbanded)
    torch = sys.modules.get("torch")
    if torch is not None and not _disbanded:
        torch.set_num_threads(1)


_disbanded = True
systems.at_fork(before=_before_fork, after_in_child=_after_fork_in_child)


def _records(jobs: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    n_columns = len(DECODE_JOB_COLUMNS)
    if jobs.dtype != np.int64 or jobs.ndim != 2 or jobs.shape[1] != n_columns:
        raise ValueError(f"jobs is {jobs.dtype}{list(jobs.shape)}, not int64[n, {n_columns}]")
    return np.ascontiguousarray(jobs)
