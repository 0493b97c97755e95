"""Which kernels run: the best that the processor has, or those that SPQFMT_BACKEND names.

All backends read and write the same bytes. A new one is a row of `_BACKENDS`, and of dispatch.cpp where it is
native.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

from spqfmt.errors import BackendError
from spqfmt.kernels import native
from spqfmt.kernels.native import Buffer

ENVIRONMENT_VARIABLE = "SPQFMT_BACKEND"


@dataclass(frozen=True)
class Backend:
    """What codes rans chunks in host memory, and what computes on a device.

    `kernels` names the native kernels, which also do checksums and byte planes. `device_kernels` is "triton" or "torch"
    (spqfmt.kernels.device.choose), None for what suits the device; `device_zstd` that zstd chunks are decoded on the
    device too, by nvCOMP.
    """

    name: str
    kernels: str
    rans_encode: Callable[[Buffer], bytes]
    rans_decode: Callable[[Buffer, Buffer], None]
    device_kernels: str | None = None
    device_zstd: bool = False


def _native(kernels: str) -> Backend:
    return Backend(kernels, kernels, native.rans_encode, native.rans_decode)


def _torch(kernels: str) -> Backend:
    # Decodes only: an encoder of its own would check nothing that decoding does not.
    try:
        from spqfmt.kernels import torch_rans
    except ImportError as error:
        raise BackendError(f"backend 'torch' needs torch: {error}") from error
    return Backend("torch", kernels, native.rans_encode, torch_rans.rans_decode, "torch")


def _triton(kernels: str) -> Backend:
    # In host memory the native decoders stay: these kernels are for what is on a device.
    _need("triton", "triton")
    return Backend("triton", kernels, native.rans_encode, native.rans_decode, "triton")


def _nvcomp(kernels: str) -> Backend:
    _need("nvcomp", "triton")
    _need("nvcomp", "nvidia.nvcomp")
    return Backend("nvcomp", kernels, native.rans_encode, native.rans_decode, "triton", device_zstd=True)


def _need(name: str, package: str) -> None:
    try:
        missing = find_spec(package) is None
    except ModuleNotFoundError:  # the package that would hold it
        missing = True
    if missing:
        raise BackendError(f"backend {name!r} needs the package {package}")


# name -> (native kernels it runs on, None for the best; constructor)
_BACKENDS: dict[str, tuple[str | None, Callable[[str], Backend]]] = {
    "native": (None, _native),
    "avx512": ("avx512", _native),
    "avx2": ("avx2", _native),
    "sse41": ("sse41", _native),
    "scalar": ("scalar", _native),
    "torch": (None, _torch),
    "triton": (None, _triton),
    "nvcomp": (None, _nvcomp),
}

_current: Backend | None = None


def available() -> list[str]:
    """Names of the backends that code chunks in host memory in their own way on this machine."""
    return [*native.available_kernels(), "torch"]


def current() -> Backend:
    """Return the backend in use; the first call reads SPQFMT_BACKEND. BackendError: it cannot run here."""
    global _current  # noqa: PLW0603  one per process, like the native kernels that it selects
    if _current is None:
        _current = _select(os.environ.get(ENVIRONMENT_VARIABLE) or "native")
    return _current


def backend() -> str:
    """Name the backend that runs: "avx512", "avx2", "sse41", "scalar", "torch", "triton" or "nvcomp"."""
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
