"""Byte planes -> elements (FORMAT.md 3.2)."""

import torch

from spqfmt.kernels.device.merging import MergePlan, Plane, Source

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def merge_planes(planes: torch.Tensor, out: torch.Tensor, rotated: bool) -> None:
    """uint8 [size, n] -> n elements of `size` bytes; `rotated` ones are turned right by one bit."""
    size = len(planes)
    merged = planes.t().reshape(-1).view(_INTEGERS[size])
    if rotated:
        top = 8 * size - 1
        merged = (merged >> 1) & ((1 << top) - 1) | merged << top
    out.view(_INTEGERS[size]).view(-1).copy_(merged)


def merge(stored: torch.Tensor, scratch: torch.Tensor, plan: MergePlan, out: torch.Tensor) -> None:
    """Every job of the plan, from sent and scratch bytes to `out`, all uint8."""

    def bytes_of(plane: Plane, n: int) -> torch.Tensor:
        if plane.source is Source.SYMBOL:
            return torch.full((n,), plane.at, dtype=torch.uint8, device=out.device)
        return (stored if plane.source is Source.STORED else scratch)[plane.at : plane.at + n]

    for job in plan.jobs:
        planes = torch.stack([bytes_of(plane, job.n) for plane in job.planes])
        end = job.out_offset + planes.numel()
        merge_planes(planes, out[job.out_offset : end].view(_INTEGERS[len(planes)]), job.rotated)
