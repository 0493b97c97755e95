"""Weights on even grids in the layouts of optimum-quanto and HQQ, rounded as these libraries do by default."""

from __future__ import annotations

import torch

Arrays = dict[str, torch.Tensor]
FLOATS = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0, torch.float8_e4m3fnuz: 240.0}


def quanto_bytes(name: str, weight: torch.Tensor, dtype: torch.dtype = torch.int8) -> Arrays:
    """Make codes of eight bits with a scale for each row."""
    largest = FLOATS.get(dtype, 127.0)
    scales = weight.abs().amax(tuple(range(1, weight.dim())), keepdim=True) / largest
    codes = weight / scales
    codes = codes.clamp(-largest, largest) if dtype in FLOATS else codes.round().clamp(-128, 127)
    return {f"{name}._data": codes.to(dtype), f"{name}._scale": scales, **_scalars(name, weight.dtype)}


def quanto_bits(name: str, weight: torch.Tensor, bits: int, *, is_rounded: bool = False) -> Arrays:
    """Make codes of two or four bits; rows of more than 128 are cut into groups where they divide into some.

    `is_rounded`: with zero points that are integers.
    """
    columns = weight.shape[1]
    size = next((s for s in (128, 96, 64, 32) if columns > 128 and columns % s == 0), columns)
    groups = weight.reshape(-1, size)
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    most = (1 << bits) - 1
    scales, shift = (high - low) / most, -low
    if is_rounded:
        shift = (shift / scales).round().clamp(0, most).to(torch.int8)
        codes = (groups / scales).round() + shift
    else:
        codes = ((groups + shift) / scales).round()
    return {
        f"{name}._data._data": apart(codes.clamp(0, most).to(torch.uint8), bits),
        f"{name}._scale": scales,
        f"{name}._shift": shift,
        **_scalars(name, weight.dtype),
    }


def apart(codes: torch.Tensor, bits: int, *, is_high_first: bool = False) -> torch.Tensor:
    """Put lines that lie a part of all apart into the bytes of one, the first into the lowest bits or the highest."""
    parts = codes.chunk(8 // bits)
    packed = torch.zeros_like(parts[0])
    for number, part in enumerate(reversed(parts) if is_high_first else parts):
        packed |= part << (number * bits)
    return packed


def _scalars(name: str, dtype: torch.dtype) -> Arrays:
    stem = name.rpartition(".")[0]
    return {f"{stem}.{scalar}": torch.ones((), dtype=dtype) for scalar in ("input_scale", "output_scale")}
