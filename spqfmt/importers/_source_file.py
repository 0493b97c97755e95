"""A file of a source: read by copying, and compared with what it was when the source was opened.

Nothing of a source is mapped: a mapped file that another process cuts short kills whoever reads it (SIGBUS), and one
that is written over gives other weights without a word. A read that falls short only falls short.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from spqfmt.errors import ImporterError

# Linux reads at most 2^31 - 4096 bytes at once.
_READ_BYTES = 1 << 30
_COMPARE_BYTES = 16 << 20


class SourceChangedError(ImporterError):
    """A file is not what it was when the source was opened."""


class _FileState(NamedTuple):
    """What tells a file from the same name at another time; changed before a write shows in what is read."""

    inode: int
    n_bytes: int
    mtime_ns: int

    @classmethod
    def of(cls, stat: os.stat_result) -> _FileState:
        return cls(stat.st_ino, stat.st_size, stat.st_mtime_ns)


class SourceFile:
    """One file, as it is when this is made."""

    def __init__(self, path: Path) -> None:
        """Raises OSError for a file that is not there."""
        self.path = path
        self._state = _FileState.of(path.stat())

    @property
    def n_bytes(self) -> int:
        """The file's size."""
        return self._state.n_bytes

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

        Raises ImporterError when the file is not what it was, OSError as it is.
        """
        # Opened each time: a model may have more files than a process may hold open.
        with self.path.open("rb", buffering=0) as file:
            done = 0
            while done < len(buffer):
                view = buffer[done : done + _READ_BYTES]
                n_read = os.preadv(file.fileno(), [view], offset + done)
                if not n_read:
                    raise self._changed(what)
                done += n_read
            if _FileState.of(os.fstat(file.fileno())) != self._state:
                raise self._changed(what)

    def sha256(self) -> str:
        """Digest of the whole file in hex; see `read_into`."""
        digest = hashlib.sha256()
        buffer = bytearray(min(_COMPARE_BYTES, self.n_bytes))
        for at in range(0, self.n_bytes, len(buffer) or 1):
            part = memoryview(buffer)[: self.n_bytes - at]
            self.read_into(at, part)
            digest.update(part)
        return digest.hexdigest()

    def check_unchanged(self) -> None:
        """Raise ImporterError when the file is not what it was."""
        try:
            state = _FileState.of(self.path.stat())
        except OSError:
            raise self._changed() from None
        if state != self._state:
            raise self._changed()

    def _changed(self, what: str = "it") -> SourceChangedError:
        return SourceChangedError(
            f"{self.path}: the file was changed while {what} was read; try again when nothing writes to the model"
        )


def same_bytes(first: tuple[SourceFile, int], second: tuple[SourceFile, int], n_bytes: int) -> bool:
    """Whether `n_bytes` at two places, each a file and an offset, are alike. Reads up to the first difference."""
    (file, offset), (other, other_offset) = first, second
    for at in range(0, n_bytes, _COMPARE_BYTES):
        step = min(_COMPARE_BYTES, n_bytes - at)
        if file.read(offset + at, step) != other.read(other_offset + at, step):
            return False
    return True
