"""`memory="auto"`: what is free, less what comes on top of the weights for as many tokens as asked for.

On top come keys and values, activations (both estimated from above by the config), and what libraries take that no plan
knows. On a device that is asked of the driver, on the host of the system.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from spqfmt.errors import MemoryBudgetError, SpqError, is_out_of_memory
from spqfmt.loaders.device.seam import Device
from spqfmt.loaders.estimate import estimate
from spqfmt.residency import available
from spqfmt.residency.ladder import enough_mib
from spqfmt.residency.model_plan import Activations

RESERVED_BYTES = 256 << 20
"""What is left for others on a device: workspaces of its libraries, kernels, what an allocator rounds up."""
_HOST_SHARE = 16
"""This part of what is free is left for others on the host."""


@dataclass(frozen=True)
class FreeRoom:
    """What is free at a place, what is kept of it, and what weights may take."""

    place: str
    free_bytes: int
    reserved_bytes: int
    on_top: Activations

    @property
    def memory_bytes(self) -> int:
        """The ceiling for weights; 1 where nothing is left."""
        kept = self.reserved_bytes + self.on_top.kv_cache_bytes + self.on_top.activation_bytes
        return max(1, self.free_bytes - kept)

    @contextmanager
    def told(self) -> Iterator[None]:
        """Raise a MemoryBudgetError with what was free, and what to ask for."""
        try:
            yield
        except MemoryBudgetError as error:
            smallest, on_top = enough_mib(error.smallest_bytes), self.on_top
            raise MemoryBudgetError(
                f"{self.place} has {enough_mib(self.free_bytes)} free; of it {enough_mib(on_top.kv_cache_bytes)} are "
                f"for keys and values of {on_top.n_tokens} tokens, {enough_mib(on_top.activation_bytes)} for "
                f"activations, {enough_mib(self.reserved_bytes)} for others, and the weights need at least {smallest}: "
                f"free some, or give memory {smallest.replace(' ', '')}, which leaves less for the rest",
                error.smallest_bytes,
            ) from None


def room_at(device: Device | None, config: Any, dtype: torch.dtype, n_tokens: int) -> FreeRoom:
    """The room on a device, or on the host. Raises SpqError where nobody says what is free."""
    on_top = estimate(config, dtype, n_tokens, 1)
    if device is None:
        free, place = available.available_bytes(), "the host"
        reserved = (free or 0) // _HOST_SHARE
    else:
        free, place, reserved = device.free_bytes, str(device.torch_device), RESERVED_BYTES
    if free is None:
        raise SpqError(f"memory auto: what is free on {place} is not known here; give a size")
    return FreeRoom(place, free, reserved, on_top)


@contextmanager
def told_of_tokens(model: Any) -> Iterator[None]:
    """A device that runs out of memory beside the weights: MemoryBudgetError says what to ask for."""
    try:
        yield
    except RuntimeError as error:
        device = getattr(getattr(model, "packed_weights", None), "device", None)
        if not isinstance(device, Device) or not is_out_of_memory(error) or device.free_bytes is None:
            raise
        held = model.packed_weights.held_bytes
        # What is missing is not known; a fifth of the weights, or what is kept at least.
        less = max(1, held - max(held // 5, RESERVED_BYTES))
        raise MemoryBudgetError(
            f"{device.torch_device} ran out of memory beside the weights, which hold {enough_mib(held)}; "
            f"{enough_mib(device.free_bytes)} are free: give memory {enough_mib(less).replace(' ', '')}, "
            "or ask for less tokens",
            less,
        ) from error


def peak_of_device(model: Any) -> int | None:
    """Bytes that a CUDA device held at most, as torch's allocator counts them; None on the CPU."""
    if model.device.type != "cuda":
        return None
    return int(torch.cuda.max_memory_allocated(model.device))
