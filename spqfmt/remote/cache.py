"""Blocks of remote files in a folder of this machine, up to a size: what was used last stays.

A block is a file of its own, named by address, ETag or date, and size of the file that it is of, so that a file that
changes is another one. It has a checksum: what was damaged is fetched again. Several processes may use one folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
import time
import zlib
from pathlib import Path
from typing import NamedTuple

from spqfmt.errors import OptionError
from spqfmt.sizes import parse_size

FOLDER = "SPQFMT_CACHE"
SIZE = "SPQFMT_CACHE_SIZE"
_DEFAULT_SIZE = "8GiB"
_LEAST_BYTES = 16 << 20
_NAME = re.compile(r"[0-9a-f]{32}-[0-9a-f]{8}\.block(\.\d+-\d+\.part)?")
"""All that is ever removed: the folder may have other files."""
_CHECK_BYTES = 4
_LEFT_SECONDS = 3600
"""How old what a killed process was writing has to be before it goes."""


class _Held(NamedTuple):
    used: float
    n_bytes: int
    path: Path


class Cache:
    """A folder of blocks of files, `most_bytes` at most. Thread-safe.

    Each process counts what it adds; others' blocks it sees when it makes room. So the folder may pass its size by a
    sixteenth for each process besides the first.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self._folder, self._most_bytes = folder, most_bytes
        self._room = 0
        self._lock = threading.Lock()
        self._takes = True

    @classmethod
    def of_environment(cls) -> Cache | None:
        """The one that SPQFMT_CACHE and SPQFMT_CACHE_SIZE name. OptionError: there can be no such folder."""
        folder = os.environ.get(FOLDER, "")
        if not folder:
            return None
        said = os.environ.get(SIZE) or _DEFAULT_SIZE
        try:
            most_bytes = parse_size(said)
        except OptionError as error:
            raise OptionError(f"{SIZE}: {error}") from None
        if most_bytes < _LEAST_BYTES:
            raise OptionError(f"{SIZE}: {said} is too little, give at least {_LEAST_BYTES >> 20}MiB")
        path = Path(folder).expanduser()
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise OptionError(f"{FOLDER}: {folder}: no folder can be there ({error.strerror})") from None
        if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            raise OptionError(f"{FOLDER}: {folder}: nothing can be written there")
        return cls(path, most_bytes)

    def of_file(self, address: str, mark: str, n_bytes: int, block_bytes: int) -> CachedFile:
        """The blocks of one file; `mark` is its ETag or whatever else tells it from a later one."""
        told = "\n".join((address, mark, str(n_bytes), str(block_bytes)))
        key = hashlib.sha256(told.encode()).hexdigest()[:32]
        return CachedFile(self, key)

    def get(self, name: str) -> bytes | None:
        """What was put under this name, used now; None where it is not there any more, or damaged."""
        path = self._folder / name
        try:
            data = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        block, check = data[:-_CHECK_BYTES], data[-_CHECK_BYTES:]
        if len(data) <= _CHECK_BYTES or zlib.crc32(block).to_bytes(_CHECK_BYTES, "little") != check:
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        return block

    def has(self, name: str) -> bool:
        """Whether something is there, sound or not."""
        return (self._folder / name).exists()

    def put(self, name: str, block: bytes) -> None:
        """Keep a block, if that can be. Where it fails, as on a full disk, this process keeps no more."""
        if not self._takes:
            return
        part = self._folder / f"{name}.{os.getpid()}-{threading.get_ident()}.part"
        try:
            with self._lock:
                self._room -= len(block)
                if self._room < 0:
                    self._make_room(len(block))
            part.write_bytes(block + zlib.crc32(block).to_bytes(_CHECK_BYTES, "little"))
            part.replace(self._folder / name)
        except OSError:
            self._takes = False
            with contextlib.suppress(OSError):
                part.unlink()

    def _make_room(self, n_bytes: int) -> None:
        """Remove what was used longest ago, if there is too much, and count how much may come before the next look."""
        step = max(n_bytes, self._most_bytes // 16)
        held = sorted(self._held())
        total = sum(block.n_bytes for block in held)
        for block in held:
            if total + step <= self._most_bytes:
                break
            with contextlib.suppress(FileNotFoundError):
                block.path.unlink()
            total -= block.n_bytes
        self._room = step - n_bytes

    def _held(self) -> list[_Held]:
        found = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                matched = _NAME.fullmatch(entry.name)
                if matched is None:
                    continue
                # Another process may have removed it by now.
                with contextlib.suppress(FileNotFoundError):
                    facts = entry.stat(follow_symlinks=False)
                    path = Path(entry.path)
                    if matched[1] and facts.st_mtime > time.time() - _LEFT_SECONDS:
                        continue
                    found.append(_Held(0.0 if matched[1] else facts.st_mtime, facts.st_size, path))
        return found


class CachedFile:
    """The blocks of one file in a cache, by number."""

    def __init__(self, cache: Cache, key: str) -> None:
        self._cache, self._key = cache, key

    def get(self, number: int, n_bytes: int) -> bytes | None:
        """A block of so many bytes; None where it has to be fetched."""
        block = self._cache.get(self._name(number))
        return block if block is not None and len(block) == n_bytes else None

    def has(self, number: int) -> bool:
        """Whether a block need not be fetched, unless it is damaged."""
        return self._cache.has(self._name(number))

    def put(self, number: int, block: bytes) -> None:
        """Keep a block that was fetched."""
        self._cache.put(self._name(number), block)

    def _name(self, number: int) -> str:
        return f"{self._key}-{number:08x}.block"
