"""What systems do in ways of their own: locks of files, folders as files, reads at an offset, what follows a fork.

Linux has all of it. Where a system lacks something, as Windows does, what is left is said at each function; reading,
inspecting and verifying files need no more than that.
"""

from __future__ import annotations

import errno
import importlib
import mmap
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]
resource: ModuleType | None
"""Python's module, None on Windows."""
try:
    resource = importlib.import_module("resource")
except ModuleNotFoundError:
    resource = None

_seeking = threading.Lock()


def lock(file: int | BinaryIO, *, wait: bool) -> None:
    """Hold an open file or folder until it is closed, or its process ends.

    Raises BlockingIOError when another process holds it and this one shall not wait; another OSError where the system
    or its file system has no locks.
    """
    if fcntl is None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def open_folder(path: Path, *, follow_links: bool = True) -> int | None:
    """A descriptor of a folder, for `lock` and `sync`; None where the system opens no folders. Raises OSError."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows
        return None
    return os.open(path, os.O_RDONLY | (0 if follow_links else os.O_NOFOLLOW))


def sync_folder(path: Path) -> None:
    """Have the names in a folder reach the disk, where the system can be asked to. Raises OSError."""
    folder = open_folder(path)
    if folder is not None:
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_at(file: BinaryIO, view: memoryview, offset: int) -> int:
    """Read into `view`, uint8 and contiguous, from `offset` on; the bytes that came, 0 at the end.

    Threads may read one unbuffered file at once. Without preadv they do so one after the other.
    """
    if hasattr(os, "preadv"):
        return os.preadv(file.fileno(), [view], offset)
    with _seeking:
        file.seek(offset)
        return file.readinto(view) or 0  # type: ignore[attr-defined]


def forget(file: BinaryIO, offset: int, n_bytes: int) -> None:
    """Drop these bytes from the system's page cache, where it can be asked to."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), offset, n_bytes, os.POSIX_FADV_DONTNEED)


def pages(n_bytes: int) -> mmap.mmap:
    """Private pages of the system, zero."""
    if hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return mmap.mmap(-1, n_bytes)


def at_fork(
    *,
    before: Callable[[], None] | None = None,
    after_in_parent: Callable[[], None] | None = None,
    after_in_child: Callable[[], None] | None = None,
) -> None:
    """Have functions called around forks, as os.register_at_fork does; nothing where no process forks."""
    if hasattr(os, "register_at_fork"):
        given = {"before": before, "after_in_parent": after_in_parent, "after_in_child": after_in_child}
        os.register_at_fork(**{name: call for name, call in given.items() if call is not None})


def peak_memory_bytes() -> int | None:
    """Largest resident set of this process so far; None where the system does not tell."""
    if resource is None:
        return None
    # macOS counts in bytes, others in KiB.
    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit


def usable_processors() -> int:
    """How many processors this process may use, as far as the system tells."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
