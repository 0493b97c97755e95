"""How many threads there may be: one number, `n_threads`, for Python's and the native ones. And locks over forks."""

import os
import re
import sys
import threading
from dataclasses import replace
from functools import cache
from types import ModuleType
from weakref import WeakSet

from spqfmt import systems
from spqfmt.errors import OptionError
from spqfmt.kernels import native
from spqfmt.kernels.context import Context, current, using


def n_threads() -> int:
    """How many threads may work on what one caller wants, the caller among them.

    That is the context's (`--jobs`); without it SPQFMT_THREADS; without it torch's number where torch is loaded, and
    else what torch would take: the processors that this process may use, or OMP_NUM_THREADS of them. The variables are
    read once. Raises OptionError where SPQFMT_THREADS is no number.
    """
    wanted = wanted_threads(current())
    if wanted is not None:
        return wanted
    of_torch = getattr(sys.modules.get("torch"), "get_num_threads", None)
    if of_torch is not None:
        return int(of_torch())
    usable = native.usable_threads()
    return min(_from_environment("OMP_NUM_THREADS", strict=False) or usable, usable)


def wanted_threads(context: Context) -> int | None:
    """How many threads a context or SPQFMT_THREADS says; None: neither does, and `n_threads` says the rest."""
    return context.threads or _from_environment("SPQFMT_THREADS")


@cache  # looking takes a microsecond, and every product of a packed model asks
def _from_environment(name: str, *, strict: bool = True) -> int | None:
    value = os.environ.get(name)
    if not value:
        return None
    # OpenMP's has one number for each level of nesting.
    first = value.strip() if strict else value.partition(",")[0].strip()
    if re.fullmatch(r"[0-9]{1,9}", first) and int(first) > 0:
        return int(first)
    if strict:
        raise OptionError(f"{name}={value} is not a number of threads, of which there is at least 1")
    return None


def check_variable() -> None:
    """Raise OptionError where SPQFMT_THREADS is no number of threads, whether anything will ask for it or not."""
    _from_environment("SPQFMT_THREADS")


_OTHERS = 8
"""Threads that are started besides, at most: by transformers to load a model, to generate, and to read ahead."""


def bound_torch() -> None:
    """Have torch compute on no more threads than the system has room for: its OpenMP runtime may end the process there.

    Called before work that leaves much to torch; decides once in a process.
    """
    torch = sys.modules.get("torch")
    if torch is not None:
        _bound(torch)


@cache  # what torch has started by the second time would count as missing
def _bound(torch: ModuleType) -> None:
    # There is room where a second team has some too: another thread's, or spqfmt's own helpers.
    n: int = torch.get_num_threads()
    room = native.startable_threads(2 * n + _OTHERS)
    if room < 2 * n + _OTHERS:
        torch.set_num_threads(max(1, (room - _OTHERS) // 2))


def jobs(n: int | None) -> using:
    """A context manager: so many threads for a while (`--jobs`); None is the environment's number."""
    return using(replace(current(), threads=n))


def blocks(block_log2: int) -> using:
    """A context manager: rans chunks are written in blocks of 2**block_log2 symbols; 0 leaves that to the encoder."""
    return using(replace(current(), block_log2=block_log2))


_held: "WeakSet[threading.Lock | threading.RLock]" = WeakSet()
_holding: "list[threading.Lock | threading.RLock]" = []
_forks = threading.Lock()
"""Held by whoever makes such locks or forks; the others wait."""


def lock_held_over_forks() -> threading.Lock:
    """A lock that whoever forks waits for, so that what it guards is whole in the child, and the lock free."""
    lock = threading.Lock()
    with _forks:
        _held.add(lock)
    return lock


def own_lock_held_over_forks() -> threading.RLock:
    """The same of a lock that a thread which has it may take again."""
    lock = threading.RLock()
    with _forks:
        _held.add(lock)
    return lock


def _hold() -> None:
    _forks.acquire()
    for lock in _held:
        lock.acquire()
        _holding.append(lock)


def _let_go() -> None:
    while _holding:
        _holding.pop().release()
    _forks.release()


systems.at_fork(before=_hold, after_in_parent=_let_go, after_in_child=_let_go)
systems.at_fork(after_in_child=_bound.cache_clear)
