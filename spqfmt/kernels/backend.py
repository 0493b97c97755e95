"""Which kernels run: the best that the processor has, or those that SPQFMT_BACKEND names.

All backends read and write the same bytes. A new one is a row of `_BACKENDS`, and of dispatch.cpp where it is
native.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from importlib.util import find_spec

from spqfmt.errors import BackendError
from spqfmt.kernels import context, native
from spqfmt.kernels.context import Backend

ENVIRONMENT_VARIABLE = "SPQFMT_BACKEND"


def _native(kernels: str) -> Backend:
    return Backend(kernels, kernels, native.rans_encode, native.rans_decode)


def _torch(kernels: str) -> Backend:
    # Decodes only: an encoder of its own would check nothing that decoding does not.
    try:
        from spqfmt.kernels import torch_rans
    except ImportError as error:
        raise BackendError(f"backend 'torch' needs torch: {error}") from error
    return Backend(
        name="torch",
        kernels=kernels,
        rans_encode=native.rans_encode,
        rans_decode=torch_rans.rans_decode,
        device_kernels="torch",
    )


def _triton(kernels: str) -> Backend:
    # In host memory the native decoders stay: these kernels are for what is on a device.
    _need("triton", "triton")
    return Backend(
        name="triton",
        kernels=kernels,
        rans_encode=native.rans_encode,
        rans_decode=native.rans_decode,
        device_kernels="triton",
    )


def _nvcomp(kernels: str) -> Backend:
    _need("nvcomp", "triton")
    _need("nvcomp", "nvidia.nvcomp")
    return Backend(
        name="nvcomp",
        kernels=kernels,
        rans_encode=native.rans_encode,
        rans_decode=native.rans_decode,
        device_kernels="triton",
        device_zstd=True,
    )


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
    "neon": ("neon", _native),
    "scalar": ("scalar", _native),
    "torch": (None, _torch),
    "triton": (None, _triton),
    "nvcomp": (None, _nvcomp),
}


def available() -> list[str]:
    """Names of the backends that code chunks in host memory in their own way on this machine."""
    return [*native.available_kernels(), "torch"]


def current() -> Backend:
    """Return the backend of the context in force, else SPQFMT_BACKEND's. BackendError: it cannot run here."""
    return context.current().backend or _of_environment()


@cache  # the variable is read once
def _of_environment() -> Backend:
    found = find(os.environ.get(ENVIRONMENT_VARIABLE) or "native")
    native.default_kernels(found.kernels)
    return found


def backend() -> str:
    """Name the backend that runs: "avx512", "avx2", "sse41", "neon", "scalar", "torch", "triton" or "nvcomp"."""
    return current().name


@contextmanager
def use(name: str) -> Iterator[Backend]:
    """Run with another backend for a while, in the calling thread and what spqfmt starts for it.

    BackendError as for `find`.
    """
    found = find(name)
    with context.using(replace(context.current(), backend=found)):
        yield found


def find(name: str) -> Backend:
    """The backend of a name. BackendError: there is none, or it cannot run here."""
    if name not in _BACKENDS:
        raise BackendError(f"unknown backend {name!r}; known are {', '.join(_BACKENDS)}")
    kernels, construct = _BACKENDS[name]
    if kernels is None:
        kernels = native.available_kernels()[0]
    if kernels not in native.available_kernels():
        raise BackendError(f"backend {name!r} cannot run on this machine; {', '.join(available())} can")
    return construct(kernels)
