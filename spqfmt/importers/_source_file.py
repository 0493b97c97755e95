"""A file of a source: read by copying, and compared with what it was when the source was opened.

Nothing of a source is mapped: a mapped file that another process cuts short kills whoever reads it (SIGBUS), and one
that is written over gives other weights without a word. A read that falls short only falls short.

A write through a mapping shows in no time of the file before its pages go to the disk, and on some file systems never.
So what is read twice, for calibration and to be written, or to be written and for the file's digest, must have the
same checksum both times.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spqfmt import systems
from spqfmt.errors import ImporterError
from spqfmt.kernels import native

# Linux reads at most 2^31 - 4096 bytes at once.
_READ_BYTES = 1 << 30
_COMPARE_BYTES = 1 << 20
"""So few that they stay in a cache for digest and checksums: a sixth less time than with 16 MiB."""


class SourceChangedError(ImporterError):
    """A file is not what it was when the source was opened."""


class _FileState(NamedTuple):
    """What tells a file from the same name at another time; changed before a write shows in what is read.

    Whoever writes may set `mtime_ns` back, which copying tools do; nobody can set `ctime_ns`. That one changes with the
    file's name, links and permissions too.
    """

    inode: int
    n_bytes: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, stat: os.stat_result) -> _FileState:
        return cls(stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


class SourceFile:
    """One file, as it is when this is made."""

    def __init__(self, path: Path) -> None:
        """Raises OSError for a file that is not there."""
        self.path = path
        self._state = _FileState.of(path.stat())
        self._checksums: dict[tuple[int, int], int] = {}

    @property
    def n_bytes(self) -> int:
        """The size that the file had when it was opened."""
        return self._state.n_bytes

    @property
    def checksums(self) -> dict[tuple[int, int], int]:
        """The CRC-32 of what was read so far, by offset and number of bytes."""
        return self._checksums.copy()

    @property
    def described(self) -> tuple[int, int]:
        """Size and time of the last change: what two runs that pack one source must find alike."""
        return self._state.n_bytes, self._state.mtime_ns

    def read(self, offset: int, n_bytes: int) -> bytearray:
        """Some bytes of the file, at most those up to its end; see `read_into`."""
        buffer = bytearray(max(0, min(n_bytes, self.n_bytes - offset)))
        self.read_into(offset, memoryview(buffer))
        return buffer

    def read_all(self) -> bytes:
        """The whole file; see `read_into`."""
        return bytes(self.read(0, self.n_bytes))

    def read_into(self, offset: int, buffer: memoryview, what: str = "it") -> None:
        """Fill `buffer`, bytes, from `offset`; `what` is being read, in an error's words.

        Raises ImporterError when the file is not what it was, or when these bytes were others before; OSError as it is.
        """
        with self._open() as file:
            self._fill(file, offset, buffer, what)
        self.compare(offset, len(buffer), native.crc32(buffer), what)

    def compare(self, offset: int, n_bytes: int, checksum: int, what: str = "it") -> None:
        """Tell what the CRC-32 of these bytes is. Raises ImporterError when it was another before."""
        if self._checksums.setdefault((offset, n_bytes), checksum) != checksum:
            raise self._changed(what)

    def holds(self, offset: int, n_bytes: int, runs: Iterable[NDArray[np.uint8]]) -> bool:
        """Whether the `n_bytes` from `offset` on are these, run by run; see `read_into`. Reads on where they differ."""
        buffer = np.empty(_COMPARE_BYTES, np.uint8)
        checksum, at, same = 0, offset, True
        with self._open() as file:
            for run in runs:
                for first in range(0, run.size, buffer.size):
                    wanted = run[first : first + buffer.size]
                    found = buffer[: wanted.size]
                    self._fill(file, at, found.data)
                    same = same and np.array_equal(found, wanted)
                    checksum = native.crc32(found, checksum)
                    at += wanted.size
        self.compare(offset, at - offset, checksum)
        return same and at - offset == n_bytes

    def _open(self) -> BinaryIO:
        # Opened each time: a model may have more files than a process may hold open.
        return self.path.open("rb", buffering=0)

    def _fill(self, file: BinaryIO, offset: int, buffer: memoryview, what: str = "it") -> None:
        done = 0
        while done < len(buffer):
            view = buffer[done : done + _READ_BYTES]
            n_read = systems.read_at(file, view, offset + done)
            if not n_read:
                raise self._changed(what)
            done += n_read
        self._check(_FileState.of(os.fstat(file.fileno())), what)

    def sha256(self, cuts: Sequence[int] = ()) -> str:
        """Digest of the whole file in hex; see `read_into`.

        Bytes between two neighbours of `cuts`, ascending offsets within the file, are compared with those that are
        read on their own, before or later.
        """
        digest = hashlib.sha256()
        buffer = bytearray(min(_COMPARE_BYTES, self.n_bytes))
        ends = [end for end in cuts if 0 < end < self.n_bytes] + [self.n_bytes]
        whole, begin, checksum, number = 0, 0, 0, 0
        with self._open() as file:
            for at in range(0, self.n_bytes, len(buffer) or 1):
                part = memoryview(buffer)[: self.n_bytes - at]
                self._fill(file, at, part)
                digest.update(part)
                whole = native.crc32(part, whole)
                done = 0
                while done < len(part):
                    stop = min(ends[number] - at, len(part))
                    checksum = native.crc32(part[done:stop], checksum)
                    done = stop
                    if at + stop == ends[number]:
                        self.compare(begin, ends[number] - begin, checksum)
                        begin, checksum, number = ends[number], 0, number + 1
        self.compare(0, self.n_bytes, whole)
        return digest.hexdigest()

    def check_unchanged(self) -> None:
        """Raise ImporterError when the file is not what it was."""
        try:
            state = _FileState.of(self.path.stat())
        except OSError:
            raise self._changed() from None
        self._check(state)

    def _check(self, state: _FileState, what: str = "it") -> None:
        if state != self._state:
            # A false alarm, maybe: the file was linked or its permissions set.
            only_ctime = state._replace(ctime_ns=self._state.ctime_ns) == self._state
            raise self._changed(what, ", or its name, links or permissions were" if only_ctime else "")

    def _changed(self, what: str = "it", more: str = "") -> SourceChangedError:
        return SourceChangedError(
            f"{self.path}: the file was changed while {what} was read{more}; "
            "try again when nothing writes to the model"
        )


def same_bytes(first: tuple[SourceFile, int], second: tuple[SourceFile, int], n_bytes: int) -> bool:
    """Whether `n_bytes` at two places, each a file and an offset, are alike. Reads up to the first difference."""
    (file, offset), (other, other_offset) = first, second
    checksum = 0
    for at in range(0, n_bytes, _COMPARE_BYTES):
        step = min(_COMPARE_BYTES, n_bytes - at)
        part = file.read(offset + at, step)
        if part != other.read(other_offset + at, step):
            return False
        checksum = native.crc32(part, checksum)
    file.compare(offset, n_bytes, checksum)
    other.compare(other_offset, n_bytes, checksum)
    return True
