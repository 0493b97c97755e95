"""Commands of spqfmt in forked children, with a fault, and what is seen of them from outside."""

import contextlib
import importlib
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bounds import allow_more_threads

_PATIENCE = 180.0
"""Seconds after which a command hangs."""
_MODULES = "modules:"
_PRELOADED = {
    "jinja2",
    "numpy",
    "rich",
    "safetensors",
    "spqfmt",
    "tokenizers",
    "torch",
    "transformers",
    "zstandard",
}


@dataclass(frozen=True)
class Fault:
    """What goes wrong for a command: variables of shim.c, limits of the system, or a signal after some seconds.

    `more_threads`: so many threads or processes can be started, and no more.
    """

    environment: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[int, int] = field(default_factory=dict)
    signal: int | None = None
    after: float = 0.0
    more_threads: int | None = None


@dataclass(frozen=True)
class Seen:
    """How a command ended: its exit code, or minus the signal that ended it; what it said; how long it took."""

    code: int
    said: str
    seconds: float

    @property
    def in_words(self) -> str:
        """What happened, as the table counts it."""
        if self.code == -signal.SIGKILL:
            return "killed"
        if self.code < 0:
            return f"DIED of signal {-self.code}"
        if "Traceback" in self.said or "unexpected" in self.said:
            return f"UNEXPECTED error ({self.said.strip().splitlines()[-1][:120]})"
        lines = [line for line in self.said.splitlines() if line.strip()]
        if self.code and len(lines) != 1:
            return f"exit {self.code}, {len(lines)} LINES"
        return f"exit {self.code}" + (", one line" if self.code else "")


def command(*arguments: object) -> Callable[[], None]:
    """Return a command line as a function that ends the process."""
    from spqfmt.cli.main import main

    def run() -> None:
        main([str(argument) for argument in arguments])

    return run


def preload(commands: Sequence[Sequence[object]], log: Path) -> None:
    """Import what these commands import, so that forked children need not."""
    names: set[str] = set()
    for words in commands:

        def work(words: Sequence[object] = words) -> None:
            with contextlib.suppress(SystemExit):
                command(*words)()
            print(f"\n{_MODULES}", *sys.modules)

        names |= set(in_child(work, Fault(), log).said.rpartition(_MODULES)[2].split())
    for name in sorted(names - set(sys.modules)):
        with contextlib.suppress(Exception):  # names that are no modules of their own
            if name.split(".")[0] in _PRELOADED:
                importlib.import_module(name)


def in_child(work: Callable[[], None], fault: Fault, log: Path, *, patience: float = _PATIENCE) -> Seen:
    """Do some work in a forked child that the fault happens to."""
    child = start(work, fault, log)
    return wait(child, fault, log, time.monotonic(), patience=patience)


def start(work: Callable[[], None], fault: Fault, log: Path) -> int:
    """Start some work in a forked child, whose words go to `log`; return its number."""
    sys.stdout.flush()
    begun, begins = os.pipe()
    child = os.fork()
    if child:
        os.close(begins)
        os.read(begun, 1)  # a signal is for the work, not for what is done here before it
        os.close(begun)
        return child
    code = 70
    try:
        words = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(words, 1)
        os.dup2(words, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        os.environ.update(fault.environment)
        for limit, value in fault.limits.items():
            resource.setrlimit(limit, (value, value))
        if fault.more_threads is not None:
            allow_more_threads(fault.more_threads)
        os.close(begins)
        work()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except BaseException:  # noqa: BLE001 - whatever it is, the parent counts it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(child: int, fault: Fault, log: Path, began: float, *, patience: float = _PATIENCE) -> Seen:
    """Wait for a child, and send it the fault's signal when it is time; SIGABRT when it takes too long."""
    sent = fault.signal is None
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        now = time.monotonic() - began
        if found:
            said = log.read_text(encoding="utf-8", errors="replace")
            return Seen(os.waitstatus_to_exitcode(status), said, now)
        if not sent and now >= fault.after and fault.signal is not None:
            os.kill(child, fault.signal)
            sent = True
        if now > patience:
            os.kill(child, signal.SIGABRT)
        time.sleep(0.002)


def last_line(seen: Seen) -> str:
    """What it said last, or how it ended."""
    lines = seen.said.strip().splitlines()
    return lines[-1] if lines and seen.code in {0, 1} else seen.in_words


def left_over(folder: Path, expected: Sequence[str]) -> list[str]:
    """Return the names in a folder that nobody asked for."""
    return sorted(path.name for path in folder.iterdir() if path.name not in expected)
