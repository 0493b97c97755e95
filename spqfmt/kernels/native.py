"""The native hot loops, typed. Nothing here imports torch.

Buffers are C-contiguous objects of the buffer protocol, of any element type; they are taken as bytes. What is
written to is owned by the caller and must not overlap what is read. The GIL is released while a kernel runs.
A buffer that is not contiguous or not writable raises what numpy raises (ValueError or BufferError), sizes that do not fit
together raise ValueError.
"""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from spqfmt.kernels import _native

Buffer: TypeAlias = bytes | bytearray | memoryview | np.ndarray[Any, Any]


def rans_encode(src: Buffer, block_log2: int = 0) -> bytes:
    """Return the rans chunk of `src` (FORMAT.md 4.3), whose bytes are the symbols; at least one.

    A block holds 2**block_log2 symbols, 7..16; 0 chooses. The result can be larger than `src`: store it raw then. It
    depends on nothing but the arguments.
    """
    return _native.rans_encode(src, block_log2)


def rans_decode(src: Buffer, dst: Buffer) -> None:
    """Decode the rans chunk `src` into `dst` of exactly its raw size.

    CorruptError says which rule of the format is broken, UnsupportedError that the coder is not known; `dst` is
    unspecified then. Never reads outside `src` nor writes outside `dst`.
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
    """Split elements of `itemsize` bytes (1, 2, 4 or 8, little-endian) into byte planes, the lowest byte's first.

    With `rotate` every element is rotated left by one bit before: a float's sign moves to bit 0 of the lowest plane and
    its highest plane is pure exponent. `dst` has the size of `src`.
    """
    _native.split_planes(src, itemsize, rotate, dst)


def merge_planes(src: Buffer, itemsize: int, rotate: bool, dst: Buffer) -> None:
    """Invert `split_planes`."""
    _native.merge_planes(src, itemsize, rotate, dst)
