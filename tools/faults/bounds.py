"""Limits that bind whoever runs this: the kernel counts no processes of root, nor of who may set limits."""

import ctypes
import os
import resource
from pathlib import Path

_USER = 54321
"""A user without other processes."""
_VERSION = 0x20080522
_CAP_SYS_ADMIN, _CAP_SYS_RESOURCE = 21, 24


def allow_more_threads(n: int) -> None:
    """Let this process start so many threads or processes besides what there is.

    Root stays the owner of files, by its effective user; what it loses is to count as nobody.
    """
    if os.getuid() == 0:
        os.setresuid(_USER, 0, 0)
        _give_up(_CAP_SYS_ADMIN, _CAP_SYS_RESOURCE)
    limit = _threads_of(os.getuid()) + n
    resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))


def _give_up(*capabilities: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_VERSION, 0)
    data = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice, for 64 bits
    for call in ("capget", "capset"):
        if getattr(libc, call)(header, data):
            raise OSError(ctypes.get_errno(), call)
        for capability in capabilities:
            data[0] &= ~(1 << capability)


def _threads_of(user: int) -> int:
    found = 0
    for process in Path("/proc").iterdir():
        try:
            if not process.name.isdigit():
                continue
            status = (process / "status").read_text(encoding="ascii", errors="replace")
            fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
            if int(fields["Uid"].split()[0]) == user:
                found += int(fields["Threads"])
        except (OSError, KeyError):  # it has ended meanwhile
            continue
    return found
