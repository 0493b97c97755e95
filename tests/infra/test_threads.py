"""One number of threads, wherever it is said, and who does the work when there are none."""

import os
import resource
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from spqfmt.codecs import threads
from spqfmt.codecs.tasks import Task, side_by_side, submit
from spqfmt.codecs.threads import jobs, lock_held_over_forks, n_threads, own_lock_held_over_forks
from spqfmt.errors import BackendError, CorruptError, OptionError

VARIABLES = ("SPQFMT_THREADS", "OMP_NUM_THREADS")


def python(code: str, **variables: str) -> str:
    """What a program prints in an environment that says no more of threads than this."""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES} | variables
    result = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


ASK = "from spqfmt.codecs.threads import n_threads, jobs\n"
MAIN = "from spqfmt.cli.main import main; main()"
PROCESSORS = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("code", "variables", "expected"),
    [
        ("", {}, PROCESSORS),
        ("", {"OMP_NUM_THREADS": "1"}, 1),
        ("", {"OMP_NUM_THREADS": "1,2"}, 1),
        ("", {"OMP_NUM_THREADS": "999"}, PROCESSORS),
        ("", {"OMP_NUM_THREADS": "1", "SPQFMT_THREADS": "4"}, 4),
        ("jobs(6).__enter__()\n", {"SPQFMT_THREADS": "4"}, 6),
    ],
)
def test_whose_number_it_is(code: str, variables: dict[str, str], expected: int) -> None:
    assert python(f"{ASK}{code}print(n_threads())", **variables) == str(expected)


def test_it_is_torchs_where_nothing_else_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    variables: dict[str, int] = {"OMP_NUM_THREADS": 1}
    monkeypatch.setattr(threads, "_from_environment", variables.get)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(5)
        assert n_threads() == 5
        variables["SPQFMT_THREADS"] = 4
        assert n_threads() == 4
        with jobs(3):
            assert n_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "3,4", "1 2", "\u00b2"])
def test_a_variable_that_is_no_number(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_from_environment", threads._from_environment.__wrapped__)
    monkeypatch.setenv("SPQFMT_THREADS", value)
    for ask in (n_threads, threads.check_variable):
        with pytest.raises(
            OptionError, match=rf"^SPQFMT_THREADS={value} is not a number of threads, of which"
        ):
            ask()
    monkeypatch.delenv("SPQFMT_THREADS")
    monkeypatch.setenv("OMP_NUM_THREADS", value)  # OpenMP's runtimes see to theirs themselves
    assert n_threads() > 0


@pytest.mark.parametrize("n", [1, 2, 3])
def test_no_more_threads_work_than_that(n: int) -> None:
    seen, together = threading.Semaphore(0), []
    lock = threading.Lock()
    working = 0

    def work(number: int) -> int:
        nonlocal working
        with lock:
            working += 1
            together.append(working)
        seen.acquire(timeout=0.01)
        with lock:
            working -= 1
        return number * number

    with jobs(n):
        assert side_by_side(work, range(30)) == [number * number for number in range(30)]
        tasks = [submit(work, number) for number in range(30)]
        assert [task.result() for task in tasks] == [number * number for number in range(30)]
    assert max(together) == n


@pytest.mark.parametrize("n", [1, 2, 4])
def test_the_first_item_that_fails_is_told(n: int) -> None:
    def work(number: int) -> None:
        if number % 7 == 5:
            raise CorruptError(f"{number}")

    with jobs(n), pytest.raises(CorruptError, match=r"^5$"):
        side_by_side(work, range(100))


def test_nothing_is_done_after_an_interrupt() -> None:
    done: list[int] = []
    interrupted = threading.Event()

    def work(number: int) -> None:
        if threading.current_thread() is threading.main_thread():
            interrupted.set()
            raise KeyboardInterrupt
        interrupted.wait(10)
        done.append(number)

    with jobs(3), pytest.raises(KeyboardInterrupt):
        side_by_side(work, range(10000))
    assert len(done) < 10000
    n_done = len(done)
    with jobs(3):
        assert side_by_side(abs, range(4)) == [0, 1, 2, 3]
    assert len(done) == n_done


def test_work_may_share_its_own_work() -> None:
    with jobs(3):
        assert side_by_side(lambda n: sum(side_by_side(abs, range(n))), range(20)) == [
            sum(range(n)) for n in range(20)
        ]


def test_where_no_thread_can_be_started_the_caller_does_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with jobs(5):  # of no other test: none of its threads are there yet
        tasks = [submit(threading.current_thread) for _ in range(50)]
        assert {task.result() for task in tasks} == {threading.current_thread()}
        assert set(side_by_side(lambda _: threading.current_thread(), range(50))) == {
            threading.current_thread()
        }


def test_a_task_is_done_once_and_tells_everyone_what_it_raised() -> None:
    calls = []

    def work() -> None:
        calls.append(1)
        raise BackendError("no")

    task: Task[None] = Task(work)
    others = [threading.Thread(target=task.do) for _ in range(4)]
    for other in others:
        other.start()
    for _ in range(2):
        with pytest.raises(BackendError, match="no"):
            task.result()
    for other in others:
        other.join()
    assert calls == [1]


@pytest.mark.parametrize("make", [lock_held_over_forks, own_lock_held_over_forks])
def test_whoever_forks_waits_for_such_a_lock(make: Callable[[], Any]) -> None:
    lock = make()
    events = []
    held = threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            threading.Event().wait(0.2)
            events.append("released")

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    child = os.fork()
    if child == 0:
        os._exit(0 if lock.acquire(timeout=10) else 1)
    events.append("forked")
    assert os.waitpid(child, 0)[1] == 0
    holder.join()
    assert events == ["released", "forked"]
    assert lock.acquire(timeout=10)


@pytest.fixture
def tiny_model(tmp_path: Path) -> Path:
    tiny.build("llama", tmp_path / "model", dtype=torch.bfloat16)
    return tmp_path / "model"


def test_commands_work_where_the_system_starts_no_thread(tiny_model: Path, tmp_path: Path) -> None:
    if resource.getrlimit(resource.RLIMIT_STACK)[1] != resource.RLIM_INFINITY:
        pytest.skip("stacks cannot be made too large here")
    packed, text = tmp_path / "model.spq", tmp_path / "text.txt"
    text.write_text("a text " * 100)
    memory = ("--memory", "1MiB", "--max-new-tokens", "3")
    for command in (
        ("pack", tiny_model, packed, "--method", "gptq", "--calibration", text, "--samples", 2),
        ("verify", packed),
        ("inspect", packed, "--measure", "--json"),
        ("repack", packed, tmp_path / "other.spq", "--codec", "zstd"),
        ("unpack", packed, tmp_path / "out"),
        ("run", packed, "--prompt", "a", *memory),
    ):
        # A thread's stack is as large as the limit for the first one's.
        limited = (
            f"ulimit -s {1 << 36}; exec {shlex.join([sys.executable, '-P', '-c', MAIN, *map(str, command)])}"
        )
        result = subprocess.run(
            ["sh", "-c", limited], capture_output=True, text=True, check=False, timeout=300
        )
        assert result.returncode == 0, (command, result.stderr)
