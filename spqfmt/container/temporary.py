"""Files under a temporary name: made beside their final one, given it when they are whole, removed when left over.

Who writes such a file holds a lock on it. The system drops the lock with the process, so a file without one was left by
a process that was killed.
"""

import errno
import os
import re
import secrets
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import BinaryIO

from spqfmt import systems
from spqfmt.unfinished import forget, making, named

_SUFFIX = r"\.[0-9a-f]{8}\.part"


def open_temporary(path: Path) -> tuple[Path, BinaryIO]:
    """A new locked file beside `path`, `.NAME.xxxxxxxx.part`, open for writing."""
    while True:
        temporary = _temporary(path)
        with making(temporary):
            file = temporary.open("xb")
        with suppress(OSError):  # without locks nothing is ever taken for left over either
            systems.lock(file, wait=True)
        # Between the two steps above it may have been taken for left over.
        if os.fstat(file.fileno()).st_nlink:
            return temporary, file
        forget(temporary)
        file.close()


def discard(temporary: Path) -> None:
    """Remove a temporary file, if it is still there under that name."""
    temporary.unlink(missing_ok=True)
    forget(temporary)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")


def refuse_existing(path: Path, force: bool) -> None:
    """Raise FileExistsError when the name is taken and may not be replaced, IsADirectoryError when it never may.

    A link has a name like any file: it is replaced itself, and what it points to is left alone.
    """
    if path.is_dir() and not path.is_symlink():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not force and os.path.lexists(path):
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
    systems.sync_folder(path.parent)


def publish_together(files: Sequence[tuple[Path, Path]], *, force: bool) -> None:
    """Give whole files, each a temporary and a final name, their names in this order: all of them, or none.

    Whatever is raised in between, the files that had the names are there again. No system renames several files at
    once, so a process that is killed in between leaves the first ones; the last one must tell that they are not what
    it goes with, as the index of shards does. Raises FileExistsError when a name is taken and `force` is not set.
    """
    kept: list[Path] = []
    with ExitStack() as undo:
        for temporary, path in files:
            refuse_existing(path, force)
            before = _temporary(path)
            kept.append(before)
            undo.callback(_put_back, temporary, path, before)
            if temporary == files[-1][0]:
                systems.sync_folder(path.parent)
            if force:
                if os.path.lexists(path):
                    _keep(path, before)
                temporary.replace(path)
            else:
                _link(temporary, path)
        systems.sync_folder(files[-1][1].parent)
        undo.pop_all()
    for before in kept:
        discard(named(before))


def _keep(path: Path, before: Path) -> None:
    try:
        os.link(path, before, follow_symlinks=False)
    except OSError:  # no hard links on this file system
        path.replace(before)


def _put_back(temporary: Path, path: Path, before: Path) -> None:
    if os.path.lexists(before):
        before.replace(path)
        before.unlink(missing_ok=True)  # two links to one file stay two
    elif not temporary.exists() or (path.exists() and path.samefile(temporary)):
        path.unlink(missing_ok=True)


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
        systems.lock(held, wait=False)
        file.unlink()
