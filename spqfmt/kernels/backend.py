"""Which kernels run: the best that the processor has, or those that SPQFMT_BACKEND names.

All backends read and write the same bytes. A new one is a row of `_BACKENDS`, and of dispatch.cpp where it is
native.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from spqfmt.errors import BackendError
from spqfmt.kernels import native
from spqfmt.kernels.native import Buffer

ENVIRONMENT_VARIABLE = "SPQFMT_BACKEND"


@dataclass(frozen=True)
class Backend:
    """What codes rans chunks. `kernels` names the native kernels, which also do checksums and byte planes."""

    name: str
    kernels: str
    rans_encode: Callable[[Buffer], bytes]
    rans_decode: Callable[[Buffer, Buffer], None]


def _native(kernels: str) -> Backend:
    return Backend(kernels, kernels, native.rans_encode, native.rans_decode)


def _torch(kernels: str) -> Backend:
    # Decodes only: an encoder of its own would check nothing that decoding does not.
    try:
        from spqfmt.kernels import torch_rans
    except ImportError as error:
        raise BackendError(f"backend 'torch' needs torch: {error}") from error
    return Backend("torch", kernels, native.rans_encode, torch_rans.rans_decode)


# name -> (native kernels it runs on, None for the best; constructor)
_BACKENDS: dict[str, tuple[str | None, Callable[[str], Backend]]] = {
    "native": (None, _native),
    "avx512": ("avx512", _native),
    "avx2": ("avx2", _native),
    "sse41": ("sse41", _native),
    "scalar": ("scalar", _native),
    "torch": (None, _torch),
}

_current: Backend | None = None


def available() -> list[str]:
    """Names that SPQFMT_BACKEND may have on this machine, without the alias "native"."""
    return [*native.available_kernels(), "torch"]


def current() -> Backend:
    """Return the backend in use; the first call reads SPQFMT_BACKEND. BackendError: it cannot run here."""
    global _current  # noqa: PLW0603  one per process, like the native kernels that it selects
    if _current is None:
        _current = _select(os.environ.get(ENVIRONMENT_VARIABLE) or "native")
    return _current


def backend() -> str:
    """Name the backend that runs: "avx512", "avx2", "sse41", "scalar" or "torch"."""
    return current().name


@contextmanager
def use(name: str) -> Iterator[Backend]:
    """Run with another backend for a while, in all threads. BackendError as for `current`."""
    global _current  # noqa: PLW0603
    before = current()
    try:
        _current = _select(name)
        yield _current
    finally:
        native.select_kernels(before.kernels)
        _current = before


def _select(name: str) -> Backend:
    if name not in _BACKENDS:
        raise BackendError(f"unknown backend {name!r}; known are {', '.join(_BACKENDS)}")
    kernels, construct = _BACKENDS[name]
    if kernels is None:
        kernels = native.available_kernels()[0]
    if kernels not in native.available_kernels():
        raise BackendError(f"backend {name!r} cannot run on this machine; {', '.join(available())} can")
    selected = construct(kernels)
    native.select_kernels(kernels)
    return selected
