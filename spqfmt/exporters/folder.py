"""A folder or file that is always whole: written beside its place under a temporary name, and renamed."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spqfmt.errors import OptionError


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

    Raises as `refuse_full` does.
    """
    refuse_full(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.partial"
    partial.mkdir()
    try:
        yield partial
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def whole_file(file: Path) -> Iterator[Path]:
    """Gives a name beside `file`, which is renamed to it at the end of the context, or removed when that raises.

    Raises FileExistsError where `file` is there.
    """
    if os.path.lexists(file):
        raise FileExistsError(f"{file}: is there already")
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.parent / f".{file.name}.{uuid.uuid4().hex[:8]}.partial"
    try:
        yield partial
        partial.rename(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
