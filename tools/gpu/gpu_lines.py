"""What tools/gpu/gpu_check.py finds, line by line in a file: a line that was written is there whatever comes after.

Each line is a JSON object with a `kind`: "run" begins the file, "begin" and "end" stand around a process of a section,
"case" and "closed" around what is tried in it, "row" is a line of the report and "figure" a value that others use.
Nothing here imports torch: whoever watches the sections must outlive what they do to a device.
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

Line = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One line of the result. `ok` is None for a figure that cannot be wrong."""

    section: str
    what: str
    value: float | None
    unit: str
    ok: bool | None
    note: str = ""


@dataclass(frozen=True)
class Options:
    """Where a section writes, and what it runs on. `folder` is shared by the sections of one run."""

    section: str
    lines: Path
    folder: Path
    device: str
    kernels: str | None = None
    model: Path | None = None


class NoDeviceError(Exception):
    """The device that was asked for is not there at all."""


class NotHereError(Exception):
    """What was to stand beside ours is not installed, or does not work here: no fault of ours."""


def append(path: Path, line: Line) -> None:
    """Add a line and push it out to the disk, behind the half of a line that a process left which was killed."""
    with path.open("a+b") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(end - 1, 0))
        torn = end > 0 and file.read(1) != b"\n"
        file.write(b"\n" * torn + json.dumps(line).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[Line]:
    """All lines that are whole."""
    return list(_whole_lines(path)) if path.exists() else []


def _whole_lines(path: Path) -> Iterator[Line]:
    for text in path.read_bytes().split(b"\n"):
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and "kind" in line:
            yield line


def rows_of(lines: list[Line]) -> list[Row]:
    """The rows of a report, in order."""
    found = [line for line in lines if line["kind"] == "row"]
    return [Row(**{name: value for name, value in line.items() if name != "kind"}) for line in found]


def figures_of(lines: list[Line]) -> dict[str, Any]:
    """The values that were found, by name; the last one of a name counts."""
    return {line["name"]: line["value"] for line in lines if line["kind"] == "figure"}


def begun_cases(lines: list[Line], section: str) -> list[str]:
    """What was begun in a section: it is not tried twice, for it may be what ended the process."""
    return [line["what"] for line in lines if line["kind"] == "case" and line["section"] == section]


def open_case(lines: list[Line], section: str) -> str | None:
    """What was begun in a section and never closed."""
    begun = begun_cases(lines, section)
    closed = [line["what"] for line in lines if line["kind"] == "closed" and line["section"] == section]
    return next((what for what in reversed(begun) if what not in closed), None)


class Recorder:
    """What one section finds, kept here and written to `path` at once where there is one."""

    def __init__(self, path: Path | None = None, section: str = "") -> None:
        self._path = path
        self._section = section
        before = [] if path is None else read_lines(path)
        self._done = set(begun_cases(before, section))
        self.figures = figures_of(before)
        self.rows: list[Row] = []

    def add(
        self, what: str, value: float | None = None, unit: str = "", ok: bool | None = None, note: str = ""
    ) -> None:
        """Add a row to the report."""
        row = Row(section=self._section, what=what, value=value, unit=unit, ok=ok, note=note)
        self.rows.append(row)
        self._write({"kind": "row", **asdict(row)})

    def figure(self, name: str, value: object) -> None:
        """Keep a value for the rates and for later sections."""
        self.figures[name] = value
        self._write({"kind": "figure", "section": self._section, "name": name, "value": value})

    def case(self, what: str, run: Callable[[], bool | None]) -> None:
        """Try one thing, unless a process before this one began it: its verdict is a row, its exception a wrong one.

        None as a verdict: `run` adds the rows itself.
        """
        if what in self._done:
            return
        self._done.add(what)
        self._write({"kind": "case", "section": self._section, "what": what})
        failed = False
        try:
            verdict = run()
        except NotHereError as error:
            self.add(what, note=str(error))
        except Exception as error:  # noqa: BLE001 - whatever one case raises, the next one is tried
            failed = True
            self.add(what, ok=False, note=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        else:
            if verdict is not None:
                self.add(what, ok=verdict)
        self._write({"kind": "closed", "section": self._section, "what": what})
        if failed:
            self.after_failure()

    def after_failure(self) -> None:
        """Called after a case that raised: end the process here if it can do no more."""

    def _write(self, line: Line) -> None:
        if self._path is not None:
            append(self._path, line)
