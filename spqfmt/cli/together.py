"""A command that several processes run, started by torchrun: one line for all where one of them fails."""

from collections.abc import Iterator
from contextlib import contextmanager

import click

from spqfmt.cli.failures import BAD_FILE, explain
from spqfmt.processes import Processes, are_started, join


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
        if processes.is_first_to_tell():
            raise
        explained = explain(error)
        raise click.exceptions.Exit(BAD_FILE if explained is None else explained[1]) from None
    processes.leave()
