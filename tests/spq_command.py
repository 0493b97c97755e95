"""The program, run in the process of the tests (starting torch for each command would take most of their time)."""

import importlib.util
import io
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from typing import NamedTuple, TypeAlias

import pytest

from spqfmt.cli.main import main


class Done(NamedTuple):
    """What a command did."""

    code: int
    stdout: str
    stderr: str


Run: TypeAlias = Callable[..., Done]


def run(*arguments: object) -> Done:
    """`spqfmt ARGUMENTS`."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with redirect_stdout(stdout), redirect_stderr(stderr), pytest.raises(SystemExit) as exited:
        main([str(argument) for argument in arguments])
    assert isinstance(exited.value.code, int)
    return Done(exited.value.code, stdout.getvalue(), stderr.getvalue())


def combined(*arguments: object) -> tuple[int, str]:
    """The exit code of `spqfmt ARGUMENTS`, and all that a terminal would show, in order."""
    shown = io.StringIO()
    with redirect_stdout(shown), redirect_stderr(shown), pytest.raises(SystemExit) as exited:
        main([str(argument) for argument in arguments])
    assert isinstance(exited.value.code, int)
    return exited.value.code, shown.getvalue()


def installed(*names: str) -> bool:
    """Whether modules of these names are there."""
    return all(importlib.util.find_spec(name) is not None for name in names)
