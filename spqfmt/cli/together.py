"""A command that several processes run, started by torchrun: one line for all where one of them fails."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click

from spqfmt.cli.failures import BAD_FILE, explain
from spqfmt.processes import Processes, are_started, join, speaks

_LET_THE_FIRST_SPEAK_SECONDS = 20


@contextmanager
def together() -> Iterator[Processes | None]:
    """The processes of this command; None where torchrun has not started it.

    An error leaves the context in the process that comes first with one; the others end without a word.
    """
    if not are_started():
        yield None
        return
    processes = join()
    try:
        yield processes
    except (Exception, KeyboardInterrupt) as error:
        # torchrun ends the others as one of them ends, and this one too, before it has said why.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if processes.is_first_to_tell():
            raise
        explained = explain(error)
        raise click.exceptions.Exit(BAD_FILE if explained is None else explained[1]) from None
    processes.leave()


def leave_the_word() -> None:
    """Before processes have found each other all fail alike: one says so, and the others are ended as it ends."""
    if not speaks():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(_LET_THE_FIRST_SPEAK_SECONDS)
