"""A child that bounds what a tokenizer may take ends with its parent, whose locks it would hold."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

_PARENT = """
import os, sys, time
from spqfmt.models import bounded

def work():
    print(os.getpid(), flush=True)
    time.sleep(60)

bounded._in_child(work, 1 << 30, 60)
"""

_KILLED_AT_ONCE = """
import os, time
from spqfmt.models import bounded

end_with_parent = bounded._end_with_parent

def late(parent):
    print(os.getpid(), flush=True)
    while os.getppid() == parent:
        time.sleep(0.01)
    end_with_parent(parent)

bounded._end_with_parent = late
bounded._in_child(lambda: time.sleep(60) or b"", 1 << 30, 60)
"""


def is_running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not end a child with its parent")
@pytest.mark.parametrize("script", [_PARENT, _KILLED_AT_ONCE], ids=["at work", "before it says so"])
def test_the_child_ends_when_its_parent_is_killed(script: str) -> None:
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert is_running(child)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    end = time.monotonic() + 20
    while is_running(child) and time.monotonic() < end:
        time.sleep(0.05)
    assert not is_running(child)
