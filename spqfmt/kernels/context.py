"""What work is done with: how many threads, which kernels, which rate of reading; and the blocks that are written.

But for these nothing of it changes any bytes.

A context is a value. The one in force belongs to the thread that set it, and to what spqfmt starts for that thread, not
to the process. Two models side by side keep those that they were loaded in; a forked child has the forking thread's.
"""

from collections.abc import Callable
from contextvars import ContextVar, Token
from dataclasses import dataclass
from typing import Self

from spqfmt.kernels import native
from spqfmt.kernels.native import Buffer


@dataclass(frozen=True)
class Backend:
    """What codes rans chunks in host memory, and what computes on a device.

    `kernels` names the native kernels, which also do checksums and byte planes. `device_kernels` is "triton" or "torch"
    (spqfmt.kernels.choose), None for what suits the device; `device_zstd` that zstd chunks are decoded on the
    device too, by nvCOMP.
    """

    name: str
    kernels: str
    rans_encode: Callable[[Buffer, int], bytes]
    rans_decode: Callable[[Buffer, Buffer], None]
    device_kernels: str | None = None
    device_zstd: bool = False


@dataclass(frozen=True)
class Context:
    """`threads` at most for what one caller wants, the caller among them; None is the environment's number.

    `backend` None is the environment's (spqfmt.kernels.backend). With `read_rate`, bytes a second, plans are made
    instead of with what reading a file takes here; a low one keeps all in memory that fits. `block_log2`: rans chunks
    are written in blocks of 2**block_log2 symbols; 0 leaves that to the encoder.
    """

    threads: int | None = None
    backend: Backend | None = None
    read_rate: float | None = None
    block_log2: int = 0


_in_force: ContextVar[Context] = ContextVar("spqfmt context", default=Context())  # noqa: B039  # frozen


def current() -> Context:
    """The context in force for the calling thread; the default one where none was set."""
    return _in_force.get()


class using:  # noqa: N801  # called like a function, and on every product of a packed model
    """A context manager: `context` is in force inside, for the calling thread and what spqfmt starts for it."""

    __slots__ = ("_before", "_context", "_token")

    def __init__(self, context: Context) -> None:
        self._context = context
        self._before = context
        self._token: Token[Context] | None = None

    def __enter__(self) -> Self:
        self._before = _in_force.get()
        if self._before is not self._context:
            self._token = _in_force.set(self._context)
            _switch(self._before, self._context)
        return self

    def __exit__(self, *error: object) -> None:
        if self._token is not None:
            _in_force.reset(self._token)
            self._token = None
            _switch(self._context, self._before)


def _switch(before: Context, after: Context) -> None:
    """Have the thread's native kernels follow."""
    if before.backend is not after.backend:
        native.select_kernels("" if after.backend is None else after.backend.kernels)
