"""Sections of tools/gpu/gpu_check.py, each a process of its own with a time-out: one that dies or hangs ends alone."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from time import monotonic, sleep
from typing import IO

from gpu_lines import Row, append, begun_cases, open_case, read_lines

CHILD = Path(__file__).with_name("gpu_section.py")
NO_DEVICE = 7
"""Exit code of a section whose device is not there: no other section would find it."""
_POLL_SECONDS = 0.05
_GRACE_SECONDS = 5


@dataclass(frozen=True)
class Section:
    """`target` is MODULE:FUNCTION; `seconds` bound all of it, and `quiet_seconds` the time without a line."""

    name: str
    target: str
    seconds: float
    quiet_seconds: float


def run_sections(sections: Sequence[Section], path: Path, arguments: Sequence[str], seconds: float) -> None:
    """Run the sections in order, each for as long as it may and as `seconds` for all of them leave."""
    end = monotonic() + seconds
    for number, section in enumerate(sections):
        if not _run_section(section, path, arguments, end):
            for left in sections[number + 1 :]:
                _end(path, left.name, status="not run", note="there is no device")
            return


def _run_section(section: Section, path: Path, arguments: Sequence[str], end: float) -> bool:
    """Run one section, again from behind the case at which it died or hung. False: there is no device."""
    stop = min(end, monotonic() + section.seconds)
    while True:
        if monotonic() >= stop:
            _end(
                path, section.name, status="not run" if monotonic() >= end else "hung", note="no time is left"
            )
            return True
        before = len(begun_cases(read_lines(path), section.name))
        append(path, {"kind": "begin", "section": section.name})
        begun = monotonic()
        status, code, words = _run_process(section, path, arguments, stop)
        lines = read_lines(path)
        case = open_case(lines, section.name)
        where = f" at {case!r}" if case else ""
        note = "" if status == "done" else f"{_told(status, code)}{where}{': ' * bool(words)}{words}"
        reported = {
            line["what"] for line in lines if line["kind"] == "row" and line["section"] == section.name
        }
        if status != "done" and case and case not in reported:
            row = Row(section=section.name, what=case, value=None, unit="", ok=False, note=status)
            append(path, {"kind": "row", **vars(row)})
        if case:
            append(path, {"kind": "closed", "section": section.name, "what": case})
        _end(path, section.name, status=status, note=note, seconds=monotonic() - begun)
        if code == NO_DEVICE:
            return False
        if status == "done" or len(begun_cases(lines, section.name)) == before:
            return True


def _run_process(section: Section, path: Path, arguments: Sequence[str], stop: float) -> tuple[str, int, str]:
    """How it ended, its exit code, and the last line of what it said."""
    allowed = max(stop - monotonic(), 0)
    command = [sys.executable, str(CHILD), section.target, "--section", section.name, "--lines", str(path)]
    # Should this process be killed, the child ends by its own alarm.
    command += ["--alarm", str(int(allowed) + _GRACE_SECONDS), *arguments]
    with TemporaryFile() as said:
        child = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True)
        hung = False
        try:
            size, heard = path.stat().st_size, monotonic()
            while child.poll() is None and not hung:
                sleep(_POLL_SECONDS)
                if (now := path.stat().st_size) != size:
                    size, heard = now, monotonic()
                hung = monotonic() > stop or monotonic() - heard > section.quiet_seconds
        finally:
            _kill(child)
        words = _last_line(said)
    status = "hung" if hung else "done" if child.returncode == 0 else "died"
    return status, child.returncode, words


def _kill(child: subprocess.Popen[bytes]) -> None:
    """End what is left of a section, its own children too. One that the driver holds fast is left behind."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait(_GRACE_SECONDS)
    except (ProcessLookupError, subprocess.TimeoutExpired):
        return


def _last_line(said: IO[bytes]) -> str:
    said.seek(0)
    lines = said.read().decode(errors="replace").split("\n")
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")


def _told(status: str, code: int) -> str:
    if status == "hung":
        return "ended by its time-out"
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return f"exit code {code}"


def _end(path: Path, section: str, status: str, note: str = "", seconds: float = 0) -> None:
    append(
        path,
        {"kind": "end", "section": section, "status": status, "note": note, "seconds": round(seconds, 2)},
    )
