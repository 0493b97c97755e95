"""Temporary names that this process gave, so that one interrupted between two steps leaves nothing under them."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_given: dict[Path, int] = {}
"""Each name, and the process that gave it: a forked child knows its parent's."""


def named(path: Path) -> Path:
    """Note a name of something temporary, and return it."""
    _given[path] = os.getpid()
    return path


@contextmanager
def making(path: Path) -> Iterator[None]:
    """Note a temporary name before anything is made under it; what is there already is another's, and stays."""
    named(path)
    try:
        yield
    except FileExistsError:
        forget(path)
        raise


def forget(path: Path) -> None:
    """Nothing is left under that name any more, or what is there is somebody else's."""
    _given.pop(path, None)


def remove_unfinished() -> None:
    """Remove what stands under those names. Nothing that makes them may be at work any more."""
    for path, process in list(_given.items()):
        if process != os.getpid():
            continue
        with suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        forget(path)
