"""What is given in a file's place, by mistake or because a download was not whole: each is called what it is."""

import os
import stat
from pathlib import Path

from spqfmt.address import Address, is_address
from spqfmt.errors import OptionError

_KINDS = {
    stat.S_ISFIFO: "a pipe",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
    stat.S_ISSOCK: "a socket",
}
# More than any of them needs to be told by.
BEGIN_BYTES = 256


def what_came_instead(begin: bytes) -> str:
    """What stands in a file's place, by how it begins, and what to do; empty for anything else."""
    if begin.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself; `git lfs pull` in its folder gets it"
    if begin.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "a web page, not the file itself; download it again, by its raw address"
    return ""


def unusual(path: Path) -> str:
    """What a path is that is neither file nor folder; empty for those. Raises OSError for one that is not there."""
    mode = path.stat().st_mode
    return next((name for is_kind, name in _KINDS.items() if is_kind(mode)), "")


def no_file(path: Path) -> str:
    """Why nothing can be read by `path`, and what to do, where it is neither file nor folder; empty for those.

    To open a pipe would wait for its other end, and to read some devices would not end. Raises OSError for a path that
    is not there.
    """
    kind = unusual(path)
    return f"is {kind}, not a file; save what it gives as a file, and give that" if kind else ""


def given_path(path: str | os.PathLike[str]) -> Path:
    """The path that was given. Raises OptionError for an empty one, which Python takes for the current folder."""
    if not os.fspath(path):
        raise OptionError("an empty path; give a name, or . for the current folder")
    return path if isinstance(path, Path) else Path(path)


def given_place(path: str | os.PathLike[str]) -> Path:
    """The path that was given, or the Address. Raises OptionError for an empty one."""
    return Address(path) if path and is_address(path) else given_path(path)


def read_text(path: Path) -> str:
    """The text of a UTF-8 file. Raises OptionError for anything else, OSError as it is."""
    if instead := no_file(path):
        raise OptionError(f"{path}: {instead}")
    data = path.read_bytes()
    if instead := what_came_instead(data[:BEGIN_BYTES]):
        raise OptionError(f"{path}: {instead}")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise OptionError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None
    # As text files are read: line ends become one kind.
    return text.replace("\r\n", "\n").replace("\r", "\n")
