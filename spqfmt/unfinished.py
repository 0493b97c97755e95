"""Temporary names that this process gave, so that one interrupted between two steps leaves nothing under them."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

_given: dict[Path, int] = {}
"""Each name, and the process that gave it: a forked child knows its parent's."""


def named(path: Path) -> Path:
    """Note a temporary name before anything is made under it, and return it."""
    _given[path] = os.getpid()
    return path


def is_of_another(path: Path) -> None:
    """Take back a name that was taken already."""
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
        _given.pop(path, None)
