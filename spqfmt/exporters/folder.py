"""A folder or file that is always whole: written beside its place under a temporary name, and renamed."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from spqfmt import systems
from spqfmt.errors import OptionError
from spqfmt.unfinished import forget, making


def check_gguf_name(out: Path) -> None:
    """Raise OptionError for a file that nobody would take for a GGUF."""
    if out.suffix != ".gguf":
        raise OptionError(f"{out}: the name of a GGUF file ends in .gguf")


def refuse_full(folder: Path) -> None:
    """Raise FileExistsError when `folder` is a link, or exists and is not an empty folder."""
    if folder.is_symlink():
        raise FileExistsError(f"{folder}: is a link; give the folder that it leads to")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder}: exists and is not an empty folder")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Gives a new folder, which becomes `folder` at the end of the context, or is removed when that raises.

    What a killed process left of such a folder goes first. Raises as `refuse_full` does.
    """
    refuse_full(folder)
    with _beside(folder) as partial:
        yield partial
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)


@contextmanager
def whole_file(file: Path) -> Iterator[Path]:
    """Gives a name for a file, which is renamed to `file` at the end of the context, or removed when that raises.

    What a killed process left of such a file goes first. Raises FileExistsError where `file` is there.
    """
    if os.path.lexists(file):
        raise FileExistsError(f"{file}: is there already")
    with _beside(file) as partial:
        yield partial / file.name
        (partial / file.name).rename(file)


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A new folder beside `path`, `.NAME.xxxxxxxx.partial`, which is gone after the context.

    It is locked as temporary files are (container/temporary.py): one without a lock was left by a killed process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_left_over(path)
    while True:
        partial = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.partial"
        with making(partial):
            partial.mkdir()
        try:
            held = systems.open_folder(partial)
        except FileNotFoundError:  # taken for left over at once
            forget(partial)
            continue
        if held is None:
            break
        with suppress(OSError):  # without locks nothing is ever taken for left over either
            systems.lock(held, wait=True)
        if partial.exists():  # or it was taken for left over between these steps
            break
        os.close(held)
    try:
        yield partial
    finally:
        if held is not None:
            os.close(held)
        shutil.rmtree(partial, ignore_errors=True)
        forget(partial)


def _remove_left_over(path: Path) -> None:
    ours = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.partial")
    with suppress(OSError):
        for entry in list(os.scandir(path.parent)):
            if ours.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                _remove_unlocked(Path(entry.path))


def _remove_unlocked(folder: Path) -> None:
    with suppress(OSError):
        held = systems.open_folder(folder, follow_links=False)
        if held is None:
            return
        try:
            systems.lock(held, wait=False)
            shutil.rmtree(folder)
        finally:
            os.close(held)
