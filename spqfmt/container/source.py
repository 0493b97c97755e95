"""Where the bytes of an open file come from: a file of this machine, or one elsewhere."""

import os
import threading
from pathlib import Path
from typing import Protocol

from spqfmt import systems
from spqfmt.address import Address
from spqfmt.codecs.base import Bytes
from spqfmt.errors import TruncatedError


class ByteSource(Protocol):
    """What gives bytes at offsets, to several threads at once."""

    n_bytes: int

    @property
    def n_read_bytes(self) -> int:
        """Bytes that all threads have read since `start_ahead`."""

    def read_into(self, offset: int, out: Bytes) -> None:
        """Fill `out` with the bytes from `offset` on. Raises TruncatedError, ValueError once it is closed."""

    def start_ahead(self) -> None:
        """The index was read: from now on bytes are read that lie side by side."""

    def forget(self, offset: int, n_bytes: int) -> None:
        """Drop these bytes from the system's page cache, where it can."""

    def close(self) -> None:
        """Let go of the file and what was held."""


class FileSource:
    """A file of this machine, which the system reads ahead itself (spec/decisions/0015)."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        try:
            self.n_bytes = os.fstat(self._file.fileno()).st_size
        except BaseException:
            self._file.close()
            raise
        self._read_by: dict[int, int] = {}

    @property
    def n_read_bytes(self) -> int:
        """Bytes that all threads have read since `start_ahead`."""
        return sum(list(self._read_by.values()))

    def read_into(self, offset: int, out: Bytes) -> None:
        """Read until `out` is full."""
        done = 0
        while done < out.size:
            n = systems.read_at(self._file, out[done:].data, offset + done)
            if not n:
                raise TruncatedError("the file ends before its end is due", offset + done)
            done += n
        # A number for each thread, so that none waits for another.
        thread = threading.get_ident()
        self._read_by[thread] = self._read_by.get(thread, 0) + done

    def start_ahead(self) -> None:
        """Count what is read from here on; what to read ahead the system sees for itself."""
        self._read_by.clear()

    def forget(self, offset: int, n_bytes: int) -> None:
        """Drop these bytes from the page cache, where the system can."""
        systems.forget(self._file, offset, n_bytes)

    def close(self) -> None:
        """Close the file of this machine."""
        self._file.close()


def open_source(path: Path) -> ByteSource:
    """The bytes of a file of this machine or, of an Address, of one elsewhere. Raises OSError, RemoteError."""
    if not isinstance(path, Address):
        return FileSource(path)
    # Imported only for addresses: few files have one.
    if path.scheme == "hf":
        from spqfmt.remote.hub import cached

        if (copy := cached(path)) is not None:
            return FileSource(copy)
    from spqfmt.remote.blocks import open_blocks

    return open_blocks(path)
