"""Launches of the plain kernels: done at once, or left to whoever records them, as a device records its own.

Nothing looks inside a launch: what a plain kernel does on its way (it waits, it looks at values) no other one does.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial, wraps
from typing import ParamSpec, TypeAlias

from spqfmt.errors import BackendError

P = ParamSpec("P")
Take: TypeAlias = Callable[[Callable[[], None]], None]
_TAKE: ContextVar[Take | None] = ContextVar("_TAKE", default=None)


def prepared(kernel: Callable[P, None]) -> Callable[P, None]:
    """What is prepared once and launched often. Raises BackendError while launches are recorded."""
    if _TAKE.get() is not None:
        raise BackendError("a kernel is prepared while a graph is recorded: it was not launched before")
    return launched(kernel)


def launched(kernel: Callable[P, None]) -> Callable[P, None]:
    """The kernel as a launch."""

    @wraps(kernel)
    def launch(*arguments: P.args, **options: P.kwargs) -> None:
        take = _TAKE.get()
        if take is None:
            kernel(*arguments, **options)
        else:
            take(partial(kernel, *arguments, **options))

    return launch


@contextmanager
def recorded_by(take: Take) -> Iterator[None]:
    """Launches of this thread go to `take` and are not done."""
    token = _TAKE.set(take)
    try:
        yield
    finally:
        _TAKE.reset(token)
