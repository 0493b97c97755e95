"""What a stored tokenizer or chat template does, in a child process with a bound of time and of memory.

Templates are programs, and a tokenizer.json may multiply a text as often as it likes. Both run in C or Rust for as long
as they want, where no exception and no signal handler of Python's stops them, and Rust ends the whole process when
memory runs out. A forked child has the tokenizer already, and can be ended from outside.
"""

from __future__ import annotations

import ctypes
import errno
import faulthandler
import os
import select
import signal
import sys
import time
import warnings
from array import array
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from spqfmt import systems
from spqfmt.errors import SpqError, is_out_of_memory, one_sentence

SECONDS = 5  # of a processor: others may want it too
_SLOWER = 6
_BYTES_A_SECOND = 50_000  # the slowest tokenizers, in Python, cut ten times as many
MEMORY_BYTES = 512 << 20
_MEMORY_A_BYTE = 2048  # a token has offsets, its text and a lattice of candidates beside its number
MAX_TOKENS = 16384
"""What a template may say of its own accord; the longest known ones have some 2,000."""
_TOKENS_A_BYTE = 16

_DONE, _FAILED, _LATE = b"\0", b"\1", b"\2"
_LENGTH_BYTES = 8  # another thread's child may hold the pipe open too, so its end says nothing

_PR_SET_PDEATHSIG = 1


def bounded_ids(
    work: Callable[[], Sequence[int]], text: str, explained: Callable[[str], SpqError]
) -> list[int]:
    """What `work` returns, a number for each token of `text`, found in a child process.

    Raises what `explained` makes of one sentence where `work` raises or passes its bounds: 5 s of a processor, 512
    MiB, 16,384 tokens, and more of each for a long text. OSError where no child can be started.
    """
    n_bytes = len(text.encode(errors="surrogatepass"))
    seconds = SECONDS + n_bytes // _BYTES_A_SECOND
    memory_bytes = MEMORY_BYTES + n_bytes * _MEMORY_A_BYTE
    most = MAX_TOKENS + n_bytes * _TOKENS_A_BYTE

    def counted() -> bytes:
        ids = work()
        if len(ids) > most:
            raise ValueError(f"it makes {len(ids)} tokens of {n_bytes} bytes")
        return array("q", ids).tobytes()

    kind, data = _in_child(counted, memory_bytes, seconds)
    if kind == _DONE:
        return array("q", data).tolist()
    if kind == _LATE:
        raise explained(f"it takes longer than {seconds} s")
    raise explained(data.decode() or f"it takes more than {memory_bytes >> 20} MiB of memory, or crashes")


def _in_child(work: Callable[[], bytes], memory_bytes: int, seconds: int) -> tuple[bytes, bytes]:
    """What became of the work, and what came of it: bytes, or a sentence, empty for a child that ended in the midst."""
    if not hasattr(os, "fork"):
        raise OSError(
            errno.ENOTSUP, "this system forks no child in which tokenizer and template could be bounded"
        )
    reading, writing = os.pipe()
    sys.stderr.flush()
    parent = os.getpid()
    with warnings.catch_warnings():
        # Python 3.12 and later warn of locks that other threads hold: the child does one thing, and is ended in time.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if not pid:
        os.close(reading)
        _work(work, writing, parent=parent, memory_bytes=memory_bytes, seconds=seconds)
    os.close(writing)
    try:
        found = _read(reading, time.monotonic() + seconds * _SLOWER)
    finally:
        os.close(reading)
        os.kill(pid, signal.SIGKILL)  # nothing for one that has ended
        status = os.waitpid(pid, 0)[1]
    if found is None or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU):
        return _LATE, b""
    return found[:1], found[1 + _LENGTH_BYTES :]


def _work(work: Callable[[], bytes], writing: int, *, parent: int, memory_bytes: int, seconds: int) -> None:
    """In the child: does not return."""
    try:
        _end_with_parent(parent)
        faulthandler.disable()
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the room of threads would count as taken
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what Rust says as it ends
        _limit(memory_bytes, seconds)
        kind, result = _DONE, work()
    except BaseException as error:  # noqa: BLE001  # told to the parent
        reason = "" if is_out_of_memory(error) else one_sentence(error) or type(error).__name__
        kind, result = _FAILED, reason.encode(errors="replace")
    with suppress(BaseException):
        result = kind + len(result).to_bytes(_LENGTH_BYTES, "little") + result
        while result:
            result = result[os.write(writing, result) :]
    os._exit(0)


def _end_with_parent(parent: int) -> None:
    """Have the system end this process with its parent, whose files and locks it holds too; on Linux alone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it was killed before the system was asked
            os._exit(0)


def _limit(memory_bytes: int, seconds: int) -> None:
    """Bound what this process takes from now on."""
    resource = systems.resource
    assert resource is not None  # where processes fork
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_CPU, seconds)  # for a child whose parent was killed
    # Other systems than Linux do not tell how much there is now, and keep no such limit.
    with suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _lower(resource.RLIMIT_AS, pages * resource.getpagesize() + memory_bytes)


def _lower(kind: int, limit: int) -> None:
    resource = systems.resource
    assert resource is not None
    hard = resource.getrlimit(kind)[1]
    with suppress(ValueError, OSError):
        resource.setrlimit(kind, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _read(pipe: int, end: float) -> bytes | None:
    """All that comes; None where the time is over first. A child that was killed leaves nothing: a failure."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    found = bytearray()
    while (left := end - time.monotonic()) > 0 and poll.poll(left * 1000 + 1):
        piece = os.read(pipe, 1 << 20)
        if not piece:
            return _FAILED
        found += piece
        head = 1 + _LENGTH_BYTES
        if len(found) >= head and len(found) == head + int.from_bytes(found[1:head], "little"):
            return bytes(found)
    return None
