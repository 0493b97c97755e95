"""Files under a temporary name: made beside their final one, given it when they are whole, removed when left over.

Who writes such a file holds a lock on it. The system drops the lock with the process, so a file without one was left by
a process that was killed.
"""

import fcntl
import os
import re
import secrets
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

_SUFFIX = r"\.[0-9a-f]{8}\.part"


def open_temporary(path: Path) -> tuple[Path, BinaryIO]:
    """A new locked file beside `path`, `.NAME.xxxxxxxx.part`, open for writing."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        file = temporary.open("xb")
        with suppress(OSError):  # without locks nothing is ever taken for left over either
            fcntl.flock(file, fcntl.LOCK_EX)
        # Between the two steps above it may have been taken for left over.
        if os.fstat(file.fileno()).st_nlink:
            return temporary, file
        file.close()


def refuse_existing(path: Path, force: bool) -> None:
    """Raise FileExistsError when the name is taken and may not be replaced."""
    if not force and path.exists():
        raise FileExistsError(f"{path} is there already; --force replaces it")


def publish(temporary: Path, path: Path, *, force: bool) -> None:
    """Give a whole file its name, for good. Raises FileExistsError when it is taken and `force` is not set.

    The temporary name may be left too; whoever made it removes it.
    """
    if force:
        temporary.replace(path)
    else:
        refuse_existing(path, force)
        _link(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _link(temporary: Path, path: Path) -> None:
    try:
        # A link fails when the name was taken meanwhile, where a rename would overwrite it.
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:
        # No hard links on this file system: an empty file reserves the name, and is at once replaced.
        path.open("xb").close()
        try:
            temporary.replace(path)
        except BaseException:
            path.unlink()
            raise


def remove_left_over(path: Path) -> None:
    """Remove what a killed writer of `path`, of its shards or of their index left.

    A file that is still being written stays.
    """
    stem, suffix = re.escape(path.stem), re.escape(path.suffix)
    ours = re.compile(rf"\.{stem}(-\d{{5}}-of-\d{{5}})?{suffix}(\.index\.json)?{_SUFFIX}")
    with suppress(OSError):
        for entry in list(os.scandir(path.parent)):
            if ours.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                _remove_unlocked(Path(entry.path))


def _remove_unlocked(file: Path) -> None:
    with suppress(OSError), file.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.unlink()
