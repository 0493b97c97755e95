"""The choice of who computes on a device."""

import torch

from spqfmt.errors import BackendError
from spqfmt.kernels import backend
from spqfmt.kernels.device.kernels import DeviceKernels


def kernels_for(device: torch.device, name: str | None = None) -> DeviceKernels:
    """The kernels `name`, "triton" or "torch"; None is what SPQFMT_BACKEND says, else "triton" on a GPU.

    "triton" runs on a GPU, or on the CPU where TRITON_INTERPRET=1 was set before triton was imported; "torch" anywhere.
    BackendError: the name is not known, or they cannot run on this device.
    """
    name = name or backend.current().device_kernels or ("triton" if device.type == "cuda" else "torch")
    if name == "torch":
        from spqfmt.kernels.torch_device.kernels import TorchKernels

        return TorchKernels()
    if name != "triton":
        raise BackendError(f"unknown kernels {name!r} for a device; known are torch, triton")
    try:
        from spqfmt.kernels.triton.kernels import TritonKernels
    except ImportError as error:
        raise BackendError(f"backend 'triton' needs triton: {error}") from error
    return TritonKernels(device)
