"""Threads, backend and rates belong to who asks for them, not to the process."""

import os
import threading
import time
from collections.abc import Callable

import pytest

from spqfmt.codecs import tasks
from spqfmt.codecs.tasks import side_by_side, submit
from spqfmt.codecs.threads import jobs, n_threads
from spqfmt.errors import BackendError
from spqfmt.kernels import backend, native
from spqfmt.kernels.context import Context, current, using


def in_force() -> tuple[int, str, str]:
    return n_threads(), backend.backend(), native.active_kernels()


def on_a_thread(work: Callable[[], object]) -> list[object]:
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found


def test_another_thread_is_not_disturbed() -> None:
    before = in_force()
    with using(Context(threads=3, backend=backend.find("scalar"))):
        assert in_force() == (3, "scalar", "scalar")
        assert on_a_thread(in_force) == [before]
    assert in_force() == before


def test_what_is_started_for_a_caller_works_in_its_context() -> None:
    """Also when others have helpers of their own at the same time, and on a helper that served another context."""
    together = threading.Barrier(2, timeout=10)

    def ask(n: int, name: str) -> set[tuple[int, str, str]]:
        with using(Context(threads=n, backend=backend.find(name))):
            together.wait()
            seen = set(side_by_side(lambda _: in_force(), range(200)))
            return seen | {submit(in_force).result() for _ in range(20)}

    for names in (("scalar", "torch"), ("torch", "scalar")):
        other = submit_on_thread(lambda names=names: ask(3, names[0]))
        mine = ask(4, names[1])
        assert mine == {(4, names[1], backend.find(names[1]).kernels)}
        assert other() == {(3, names[0], backend.find(names[0]).kernels)}
    with using(Context(threads=4)):
        assert set(side_by_side(lambda _: in_force()[1:], range(200))) == {in_force()[1:]}


def test_helpers_that_wait_for_nothing_end_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_IDLE_SECONDS", 0.05)
    before = set(threading.enumerate())

    def helpers() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name.startswith("spqfmt-")} - before

    with using(Context(threads=7)):
        for _ in range(2):
            assert side_by_side(abs, range(-50, 0)) == list(range(50, 0, -1))
            deadline = time.monotonic() + 60
            while helpers() and time.monotonic() < deadline:
                time.sleep(0.01)
            assert not helpers()


def submit_on_thread(work: Callable[[], object]) -> Callable[[], object]:
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()

    def result() -> object:
        thread.join()
        return found[0]

    return result


def test_contexts_nest_and_end_with_errors_too() -> None:
    before = in_force()
    with using(Context(threads=3, read_rate=5.0)):
        with jobs(2), backend.use("scalar"):
            assert current().read_rate == 5.0
            assert in_force() == (2, "scalar", "scalar")
        with pytest.raises(BackendError), backend.use("scalar"):
            raise BackendError("no")
        with jobs(None):
            assert n_threads() == before[0]
        assert in_force() == (3, *before[1:])
    assert in_force() == before


def test_a_forked_child_has_the_context_of_who_forked() -> None:
    with using(Context(threads=3, backend=backend.find("scalar"))):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                inside = in_force() == (3, "scalar", "scalar")
                shared = set(side_by_side(lambda _: in_force(), range(20))) == {(3, "scalar", "scalar")}
                status = 0 if inside and shared else 2
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
