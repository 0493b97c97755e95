"""How much memory of the host is there to be taken: what the system says, and what bounds its processes."""

from collections.abc import Callable
from pathlib import Path

Read = Callable[[str], str | None]
"""Reads a small text file, by its name; None where there is none."""
_CGROUP = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current")


def read_text(name: str) -> str | None:
    """What a file of the system says; None where it cannot be read."""
    try:
        return Path(name).read_text(encoding="utf-8")
    except OSError:
        return None


def available_bytes(read: Read = read_text) -> int | None:
    """Memory that can be taken without swapping, within the limit of the process's group; None where unknown."""
    meminfo = read("/proc/meminfo") or ""
    lines = dict(line.split(":", 1) for line in meminfo.splitlines() if ":" in line)
    found = [int(lines["MemAvailable"].split()[0]) << 10] if "MemAvailable" in lines else []
    most, now = (read(name) for name in _CGROUP)
    if most is not None and now is not None and most.strip().isdecimal():
        found.append(max(0, int(most) - int(now)))
    return min(found, default=None)
