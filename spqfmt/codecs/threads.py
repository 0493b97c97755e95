"""Threads over chunks. The codecs release the GIL; the results do not depend on the number of threads."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

from spqfmt.errors import BackendError

_In = TypeVar("_In")
_Out = TypeVar("_Out")

_jobs: int | None = None


def n_threads() -> int:
    """SPQFMT_THREADS, or the processors that this process may use."""
    wanted = os.environ.get("SPQFMT_THREADS")
    if _jobs is not None:
        return _jobs
    if wanted is None:
        return len(os.sched_getaffinity(0))
    if not wanted.isdigit() or int(wanted) < 1:
        raise BackendError(f"SPQFMT_THREADS={wanted} is not a number of threads")
    return int(wanted)


def set_jobs(jobs: int | None) -> None:
    """Overrule the number of threads (`--jobs`); None goes back to the environment's."""
    global _jobs  # noqa: PLW0603  # one setting of the process, like the environment variable
    _jobs = jobs


@contextmanager
def jobs(n: int) -> Iterator[None]:
    """Another number of threads for a while, in the whole process."""
    before = _jobs
    set_jobs(n)
    try:
        yield
    finally:
        set_jobs(before)


@cache
def _pool(n: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n, thread_name_prefix="spqfmt")


def side_by_side(work: Callable[[_In], _Out], items: Sequence[_In]) -> list[_Out]:
    """`work` on each item, in the order of the items. `work` must not call this function itself."""
    if len(items) < 2 or n_threads() == 1:
        return [work(item) for item in items]
    return list(_pool(n_threads()).map(work, items))


def submit(work: Callable[..., _Out], *arguments: object) -> Future[_Out]:
    """`work(*arguments)` on another thread."""
    return _pool(n_threads()).submit(work, *arguments)
