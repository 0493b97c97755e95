"""Paths on the command line: what is not there, or is something else, is said before any work, by every command alike.

A path that was given wrong is wrong use; a file that turns out to be missing later (a shard, a link's target) is a bad
model, and no business of this module.
"""

import difflib
import os
import re
from pathlib import Path

import click

from spqfmt.address import Address, is_address
from spqfmt.errors import OptionError, SpqError
from spqfmt.stand_ins import given_path, no_file, unusual

PIPE = Path("-")
"""Stands for stdin or stdout."""
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class InputPath(click.Path):
    """The path of something to read. `folders`: may be a folder too; `addresses`: an address, not asked yet.

    `pipes`: may be -, which is given as it is.
    """

    instead = ""
    """What to give instead of a folder."""

    def __init__(self, *, folders: bool = False, addresses: bool = False, pipes: bool = False) -> None:
        # Whether it can be read is seen as it is opened, with a better message.
        super().__init__(path_type=Path, readable=False)
        self._folders = folders
        self._addresses = addresses
        self._pipes = pipes

    def convert(
        self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        """Raises OptionError for a path that was given wrong, SpqError for a link that leads nowhere."""
        if self._addresses and value and is_address(value):
            return Address(value)
        path = given_path(value)
        if path == PIPE:
            if self._pipes:
                return path
            raise OptionError("-: stdin is read by `verify -` and `run --prompt -` alone; give a file's name")
        if not path.exists():
            _refuse_address(value)
            raise _missing(path)
        if path.is_dir():
            if not self._folders:
                raise OptionError(f"{path}: is a folder, not a file{self.instead}")
        elif instead := no_file(path):
            raise OptionError(f"{path}: {instead}")
        return path


class OutputPath(click.Path):
    """A file to write, whole, under its own name. `pipes`: may be -, which is given as it is."""

    def __init__(self, *, folders: bool = False, pipes: bool = False) -> None:
        super().__init__(dir_okay=folders, path_type=Path)
        self._folders = folders
        self._pipes = pipes

    def convert(
        self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        """Raises OptionError for a place where no file can be written."""
        path = given_path(value)
        if path == PIPE:
            if self._pipes:
                return path
            raise OptionError("-: to stdout goes what `pack SOURCE -` makes alone; give a name")
        _refuse_address(value)
        if not path.absolute().parent.exists():
            raise OptionError(f"{_first_missing(path)}: no such folder")
        if not path.absolute().parent.is_dir():
            raise OptionError(f"{path.absolute().parent}: is a file, not a folder")
        if path.is_dir() and not self._folders:
            raise OptionError(f"{path}: is a folder, not a file")
        if path.exists() and (kind := unusual(path)):
            raise OptionError(f"{path}: is {kind}, which a file would replace; give another name")
        return path


def _refuse_address(value: str | os.PathLike[str]) -> None:
    if is_address(value):
        raise OptionError(f"{value}: an address, not a file; download it and give a path, or write to one")


def _missing(path: Path) -> SpqError:
    if path.is_symlink():
        return SpqError(
            f"{path}: a link to {path.readlink()}, which is not there; download or make what it leads to again"
        )
    parent = _first_missing(path)
    if parent is not None:
        hub = (
            "; a model on a hub must be downloaded first, a packed one by `spqfmt pull`"
            if _HUB_NAME.fullmatch(str(path))
            else ""
        )
        return OptionError(f"{parent}: no such folder{hub}")
    holder = path.absolute().parent
    if holder.is_symlink() and not holder.exists():
        return _missing(holder)
    if not holder.is_dir():
        return OptionError(f"{holder}: is a file, not a folder")
    return OptionError(f"{path}: no such file or folder{_similar(path)}")


def _first_missing(path: Path) -> Path | None:
    """The first folder on the way that is not there."""
    return next((folder for folder in reversed(path.parents) if not os.path.lexists(folder)), None)


def _similar(path: Path) -> str:
    """A name in the same folder that may have been meant."""
    try:
        names = [entry.name for entry in os.scandir(path.parent)]
    except OSError:
        return ""
    if (shards := f"{path.name}.index.json") in names:
        return f"; the model is in shards, give {path.with_name(shards)}"
    # Shards have like names; another one is not what was meant.
    close = [] if "-of-" in path.name else difflib.get_close_matches(path.name, names, n=1, cutoff=0.75)
    return f"; did you mean {path.with_name(close[0])}?" if close else ""
