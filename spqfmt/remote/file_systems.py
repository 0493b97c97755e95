"""Files of whatever fsspec reads: s3, gs, az, sftp, memory and others, each by the package that it names."""

import threading
import time
from typing import Any

from spqfmt.address import Address
from spqfmt.errors import OptionError, RemoteError, SpqError, is_out_of_memory, one_sentence
from spqfmt.remote.base import changed

_MARKS = ("ETag", "etag", "version_id", "generation", "LastModified", "mtime", "created")
_KNOWN = "https://, http://, hf://, s3://, gs://, az://, sftp:// and what else fsspec knows"
_N_TRIES = 3
_LOOK_SECONDS = 1.0
"""How long the facts of a file are taken for what they are: to ask for them takes as long as to fetch a block."""


class SystemFile:
    """A file of a file system of fsspec."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.n_bytes = 0
        try:
            import fsspec  # type: ignore[import-untyped]
        except ImportError as error:
            raise OptionError(
                f"{address}: files there need the package fsspec: pip install 'spqfmt[remote]'"
            ) from error
        try:
            self._system, self._path = fsspec.core.url_to_fs(address.url)
        except ImportError as error:
            raise OptionError(f"{address}: {one_sentence(error)}") from error
        except ValueError as error:
            raise OptionError(
                f"{address}: nothing here reads such addresses, but {_KNOWN} ({one_sentence(error)})"
            ) from error
        except Exception as error:  # some ask for the host at once, and each raises its own
            if isinstance(found := self._failed(error), RemoteError):
                raise RemoteError(f"{found}; read are {_KNOWN}") from error
            raise
        self._facts = self._marks()
        self.mark = repr(sorted(self._facts.items())) if len(self._facts) > 1 else ""
        self._looked = time.monotonic()

    def close(self) -> None:
        """Connections are the file system's own, which others may share."""

    def tail(self, n_bytes: int) -> bytes:
        """Ask for the last bytes as `RemoteFile` says."""
        return self.fetch(max(0, self.n_bytes - n_bytes), self.n_bytes, threading.Event())

    def fetch(self, begin: int, end: int, stop: threading.Event) -> bytes:
        """Ask for a range as `RemoteFile` says. What breaks is asked for again."""
        for attempt in range(_N_TRIES):
            try:
                data = self._system.cat_file(self._path, start=begin, end=end)
            except Exception as error:  # each file system raises its own
                if attempt + 1 == _N_TRIES or stop.is_set() or isinstance(error, FileNotFoundError):
                    raise self._failed(error) from error
                continue
            if len(data) == end - begin:
                break
        else:
            raise changed(self.address, f"{len(data)} bytes where there were {end - begin}")
        if time.monotonic() - self._looked > _LOOK_SECONDS:
            self._looked = time.monotonic()
            if self._marks() != self._facts:
                raise changed(self.address, "its size or date")
        return bytes(data)

    def _marks(self) -> dict[str, Any]:
        try:
            self._system.invalidate_cache()
            facts = self._system.info(self._path)
        except Exception as error:
            raise self._failed(error) from error
        size = facts.get("size")
        if facts.get("type") == "directory" or not isinstance(size, int):
            raise RemoteError(f"{self.address}: not a file of a known size")
        if not self.n_bytes:
            self.n_bytes = size
        return {"size": size, **{name: facts[name] for name in _MARKS if name in facts}}

    def _failed(self, error: BaseException) -> BaseException:
        if isinstance(error, SpqError) or is_out_of_memory(error):
            return error
        if isinstance(error, FileNotFoundError):
            return RemoteError(f"{self.address}: there is no such file")
        said = error.strerror if isinstance(error, OSError) else None
        return RemoteError(f"{self.address}: {said or one_sentence(error) or type(error).__name__}")
