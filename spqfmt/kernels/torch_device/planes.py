"""Byte planes -> elements (FORMAT.md 3.2)."""

import torch

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def merge_planes(planes: torch.Tensor, out: torch.Tensor, rotated: bool) -> None:
    """uint8 [size, n] -> n elements of `size` bytes; `rotated` ones are turned right by one bit."""
    size = len(planes)
    merged = planes.t().reshape(-1).view(_INTEGERS[size])
    if rotated:
        top = 8 * size - 1
        merged = (merged >> 1) & ((1 << top) - 1) | merged << top
    out.view(_INTEGERS[size]).view(-1).copy_(merged)
