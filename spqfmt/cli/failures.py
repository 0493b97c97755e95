"""What went wrong -> one line for the user, and the exit code."""

import errno
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from spqfmt.cli.units import printable
from spqfmt.errors import (
    ChecksumError,
    EndedError,
    NoGraphWarning,
    NotSpqError,
    OptionError,
    SpqError,
    TruncatedError,
    UnusedTensorsWarning,
    is_out_of_memory,
    library_of,
    one_sentence,
    without_package,
)

OK, BAD_FILE, WRONG_USE, INTERRUPTED = 0, 1, 2, 130

DEBUG = "SPQFMT_DEBUG"
"""Environment variable that has an unexpected error shown with its traceback."""

# What to do, where the error alone does not say it.
_ADVICE = {
    NotSpqError: "`spqfmt pack` makes one from a Hugging Face folder or a GGUF file",
    TruncatedError: "it was not copied or downloaded to its end; get it again",
    ChecksumError: "the file is damaged; get it again",
}


@contextmanager
def about(*paths: Path) -> Iterator[None]:
    """Errors from inside that name none of the paths get the first one's name; those of the system the last one's,
    which is what is written. What another library raises becomes an SpqError.
    """
    try:
        yield
    except (OptionError, EndedError):
        raise
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(paths[-1])
        raise
    except SpqError as error:
        # A short name may be part of any word: it is named where it begins, or stands before a colon or a slash.
        named = "|".join(re.escape(str(path)) for path in paths)
        if not re.search(rf"^({named})\b|(^|[\s(])({named})[:/]", str(error)):
            error.args = (f"{paths[0]}: {error}", *error.args[1:])
        raise
    except BaseException as error:
        if is_out_of_memory(error):
            raise SpqError(f"{paths[0]}: {_NO_MEMORY}") from error
        if library := library_of(error):
            said = f"{type(error).__name__}: {one_sentence(error)}"
            raise SpqError(f"{paths[0]}: {library} cannot go on with it ({said})") from error
        raise


@contextmanager
def warnings_in_one_line(*, quiet: bool) -> Iterator[None]:
    """What the package warns of goes to stderr as errors do, without the place in the code; not at all with `quiet`."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def show_ours(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, UnusedTensorsWarning | NoGraphWarning):
                click.echo(f"spqfmt: {printable(' '.join(str(message).split()))}", err=True)
            else:
                show(message, category, *place, **more)

        warnings.showwarning = show_ours
        for ours in (UnusedTensorsWarning, NoGraphWarning):
            warnings.simplefilter("ignore" if quiet else "always", ours)
        yield


def explain(error: BaseException) -> tuple[str, int] | None:
    """The line without line breaks or control characters, and the exit code. None for what no user can help."""
    known = _explain(error)
    if known is None:
        return None
    message, code = known
    return printable(" ".join(message.split())), code


def _explain(error: BaseException) -> tuple[str, int] | None:
    match error:
        case click.UsageError():
            where = "" if error.ctx is None else f" (see {error.ctx.command_path} --help)"
            return f"{error.format_message().rstrip('.')}{where}", WRONG_USE
        case click.ClickException():
            return error.format_message(), error.exit_code
        case click.Abort() | KeyboardInterrupt():
            # click raises its own error of an interrupt, without the words.
            told = str(error) or str(error.__cause__ or "")
            return told or "interrupted; nothing was left behind", INTERRUPTED
        case FileExistsError():
            return str(error) if error.filename is None else _about_the_system(error), WRONG_USE
        case OSError():
            return _about_the_system(error), BAD_FILE
        case SpqError():
            advice = next((text for kind, text in _ADVICE.items() if isinstance(error, kind)), "")
            advised = "; " in str(error) or not advice
            message = str(error) if advised else f"{error}; {advice}"
            return message, WRONG_USE if isinstance(error, OptionError) else BAD_FILE
        case ModuleNotFoundError() if said := without_package(error):
            return f"this {said}", WRONG_USE
        case _ if is_out_of_memory(error):
            return _NO_MEMORY, BAD_FILE
    return None


_NO_MEMORY = (
    "not enough memory; `run --memory` holds a ceiling, `spqfmt plan` tells how low one can be, "
    "and --jobs 1 takes less while packing"
)


def _final_name(path: Path) -> Path:
    """What a temporary name stands for."""
    temporary = re.fullmatch(r"\.(.+)\.[0-9a-f]{8}\.part(ial)?", path.name)
    return path.with_name(temporary[1]) if temporary else path


def _about_the_system(error: OSError) -> str:
    name = f"{_final_name(Path(os.fsdecode(error.filename)))}: " if error.filename else ""
    left = "; ".join(getattr(error, "__notes__", ())) or "nothing was left behind"
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return f"{name}the disk is full; {left}. Make room, or write to another disk"
    if error.errno == errno.EFBIG:
        return f"{name}larger than a file may be here (ulimit -f, or the file system); {left}"
    if error.errno in {errno.EACCES, errno.EPERM}:
        return f"{name}no permission; ask its owner, or choose another place"
    if error.errno == errno.EROFS:
        return f"{name}cannot be written, the file system is read-only; choose another place"
    return f"{name}{error.strerror or error}"
