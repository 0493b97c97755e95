"""`-` in a file's place: a packed model from stdin, or to stdout.

A file's index is its end, and its first bytes are written last (FORMAT.md 2). So a pipe goes through a file without a
name of its own, in the folder for temporary files (TMPDIR).
"""

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from spqfmt import wire
from spqfmt.errors import OptionError, SpqError

_STDIN, _STDOUT = 0, 1
_PIECE_BYTES = 1 << 20


@contextmanager
def stdout_file() -> Iterator[Path]:
    """A name for a file to write, which goes to stdout once it is whole. OptionError: stdout is a terminal."""
    if os.isatty(_STDOUT):
        raise OptionError(
            "a packed model is not for a terminal; send stdout into a pipe or a file, or give a name"
        )
    with tempfile.TemporaryDirectory(prefix="spqfmt-") as folder:
        path = Path(folder, "stdout.spq")
        yield path
        # Not by sys.stdout: what is left in its buffer after an error would be another one as Python ends.
        try:
            with path.open("rb") as file, open(_STDOUT, "wb", buffering=0, closefd=False) as out:
                while piece := memoryview(file.read(_PIECE_BYTES)):
                    while piece:
                        piece = piece[out.write(piece) :]
        except BrokenPipeError:
            raise SpqError("stdout: whoever was reading has gone before the end") from None


@contextmanager
def stdin_file() -> Iterator[Path]:
    """A file with what stdin has, which errors inside call stdin. OptionError: stdin is a terminal."""
    if os.isatty(_STDIN):
        raise OptionError("stdin is a terminal; send a file into it, or give its name")
    with tempfile.TemporaryDirectory(prefix="spqfmt-") as folder:
        path = Path(folder, "stdin.spq")
        with open(_STDIN, "rb", buffering=0, closefd=False) as given:
            if stat.S_ISREG(os.fstat(_STDIN).st_mode) and given.tell() == 0:
                path.symlink_to(f"/dev/fd/{_STDIN}")
            else:
                _spool(given, path)
        try:
            yield path
        except SpqError as error:
            if error.args and str(error).startswith(f"{path}: "):
                error.args = (f"stdin{str(error).removeprefix(str(path))}", *error.args[1:])
            raise


def _spool(given: BinaryIO, path: Path) -> None:
    begin = b""
    while len(begin) < len(wire.MAGIC) and (more := given.read(len(wire.MAGIC) - len(begin))):
        begin += more
    with path.open("wb") as file:
        file.write(begin)
        # What is no packed model may go on for ever.
        if begin == wire.MAGIC:
            shutil.copyfileobj(given, file, _PIECE_BYTES)
