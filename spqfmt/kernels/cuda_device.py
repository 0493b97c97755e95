"""Whether a CUDA device can be used."""

import torch

from spqfmt.errors import BackendError


def require_cuda(device: torch.device) -> None:
    """Raise BackendError unless torch can use this CUDA device."""
    if not torch.cuda.is_available():
        built = "torch finds no CUDA device" if torch.version.cuda else "this torch has no CUDA"
        raise BackendError(f"device {str(device)!r} cannot be used: {built}")
    if (device.index or 0) >= torch.cuda.device_count():
        raise BackendError(
            f"device {str(device)!r} cannot be used: there are {torch.cuda.device_count()} CUDA devices"
        )
