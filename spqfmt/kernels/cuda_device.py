"""Whether a CUDA device can be used."""

import torch

from spqfmt.errors import BackendError
from spqfmt.processes import local_number


def own_device(name: str) -> torch.device:
    """The device of a name; of `cuda` alone, in a process that torchrun has started, the one of its number.

    That is its number on its machine; where there are fewer devices than processes, these share them.
    """
    number = local_number()
    if name != "cuda" or number is None:
        return torch.device(name)
    n_devices = torch.cuda.device_count()
    return torch.device(name, number % n_devices) if n_devices else torch.device(name)


def require_cuda(device: torch.device) -> None:
    """Raise BackendError unless torch can use this CUDA device."""
    if not torch.cuda.is_available():
        built = "torch finds no CUDA device" if torch.version.cuda else "this torch has no CUDA"
        raise BackendError(f"device {str(device)!r} cannot be used: {built}")
    if (device.index or 0) >= torch.cuda.device_count():
        raise BackendError(
            f"device {str(device)!r} cannot be used: there are {torch.cuda.device_count()} CUDA devices"
        )
