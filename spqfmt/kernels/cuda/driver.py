"""NVIDIA's driver, as far as launches of our own PTX need it: no toolkit and no compiler but the driver's."""

import ctypes
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any, Protocol

import torch

from spqfmt.errors import BackendError

_NO_CONTEXT = 201
Launch = Callable[[], None]
"""Launches with the arguments as they are now, on the stream that is current."""


class Driver(Protocol):
    """Whatever runs the kernels of fused.cu."""

    def prepare(self, name: str, programs: int, threads: int, arguments: ctypes.Structure) -> Launch:
        """Prepare launches of the kernel `name`. `arguments`, the caller's, are read anew each time."""
        ...


class CudaDriver:
    """The driver of one device, in the context that torch has there. BackendError: it is not there, or refuses."""

    def __init__(self, device: torch.device) -> None:
        self._number = device.index or 0
        try:
            self._cuda: Any = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise BackendError(f"no driver of CUDA: {error}") from error
        text = files("spqfmt.kernels.cuda").joinpath("fused.ptx").read_bytes()
        self._module = ctypes.c_void_p()
        self._check(self._cuda.cuModuleLoadData(ctypes.byref(self._module), text + b"\0"), "loading kernels")

    def prepare(self, name: str, programs: int, threads: int, arguments: ctypes.Structure) -> Launch:
        """Look the kernel up; what is launched goes to torch's current stream."""
        function = ctypes.c_void_p()
        found = self._cuda.cuModuleGetFunction(ctypes.byref(function), self._module, name.encode())
        self._check(found, f"finding {name}")
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
        # It has no argument types, by which all of these would be converted at every launch, in twice the time.
        launch_kernel, number, check = self._cuda.cuLaunchKernel, self._number, self._check
        stream_of, pointer = torch._C._cuda_getCurrentRawStream, ctypes.c_void_p

        def launch() -> None:
            stream = pointer(stream_of(number))
            code = launch_kernel(function, programs, 1, 1, threads, 1, 1, 0, stream, pointers, None)
            if code == _NO_CONTEXT:
                # torch makes its context that of this thread when it first waits, or computes, in it
                torch.cuda.synchronize(number)
                code = launch_kernel(function, programs, 1, 1, threads, 1, 1, 0, stream, pointers, None)
            if code:
                check(code, name)

        return launch

    def _check(self, code: int, what: str) -> None:
        if code:
            text = ctypes.c_char_p()
            self._cuda.cuGetErrorName(code, ctypes.byref(text))
            raise BackendError(f"CUDA's driver, {what}: {(text.value or b'error').decode()} ({code})")


@cache
def cuda_driver(device: torch.device) -> CudaDriver:
    """The driver of a device, which must be torch's current one when it is asked for first."""
    return CudaDriver(device)
