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


def hqq(
    stem: str, weight: torch.Tensor, bits: int, *, group_size: int | None = 64, axis: int = 1, steps: int = 4
) -> Arrays:
    """Make codes with scales and zeros that are no integers, in groups of rows or, with axis 0, of columns.

    The zeros are moved in some steps to where half of the weights lie above what they stand for, and half below: not as
    far as the library moves them, which seeks few large errors.
    """
    groups = weight.float()
    if group_size is not None:
        groups = groups.reshape((-1, group_size) if axis == 1 else (group_size, -1))
    low, high = groups.amin(axis, keepdim=True), groups.amax(axis, keepdim=True)
    most = (1 << bits) - 1
    scale = most / (high - low).clamp_min(1e-4)
    zero = -low * scale
    for _ in range(steps):
        codes = (groups * scale + zero).round().clamp(0, most)
        zero = (codes - groups * scale).mean(axis, keepdim=True)
    codes = (groups * scale + zero).round().clamp(0, most).to(torch.uint8)
    said = {
        "nbits": bits, "group_size": group_size, "axis": axis, "channel_wise": True, "optimize": True,
        "round_zero": bits == 4, "packing": f"{bits}bit_u8", "unpack_view_dtype": "torch.uint8", "view_as_float": False,
        "compute_dtype": str(weight.dtype), "quant_zero": False, "quant_scale": False, "offload_meta": False,
        "encoded_state_dict": True, "stores_quant_config": True,
    }  # fmt: skip
    return {
        f"{stem}W_q": apart(codes, bits, is_high_first=True),
        f"{stem}scale": (1 / scale).to(weight.dtype),
        f"{stem}zero": zero.to(weight.dtype),
        f"{stem}shape": torch.tensor(weight.shape),
        **{f"{stem}{key}": _encoded(value) for key, value in said.items() if value is not None},
    }


def _encoded(value: bool | int | str) -> torch.Tensor:
    """HQQ puts what is no tensor into safetensors like this."""
    if isinstance(value, str):
        return torch.tensor(list(value.encode()), dtype=torch.uint8)
    return torch.tensor(int(value), dtype=torch.uint8 if isinstance(value, bool) else torch.int32)


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
