"""Weights in the layout of torchao: arrays, and what the file's metadata says of each.

Int4Tensor is made by a kernel of GPUs alone; here it is as torchao's and fbgemm's sources lay it out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import torch

Arrays = dict[str, torch.Tensor]
Metadata = dict[str, str]


def int8(name: str, weight: torch.Tensor, block: Sequence[int] | None = None) -> tuple[Arrays, Metadata]:
    """Make an Int8Tensor, symmetric, with zero points that are all nought."""
    block = list(block or (1, weight.shape[1]))
    tiles = _tiles(weight.float(), block)
    scales = tiles.abs().amax((1, 3)) / 127.5
    codes = _flat((tiles / scales[:, None, :, None]).round().clamp(-128, 127), weight).to(torch.int8)
    arrays = {"qdata": codes, "scale": scales, "zero_point": torch.zeros_like(scales, dtype=torch.int8)}
    return _named(name, "Int8Tensor", arrays, {"block_size": block, "dtype": weight.dtype})


def intx(name: str, weight: torch.Tensor, bits: int, size: int | None = None) -> tuple[Arrays, Metadata]:
    """Make an IntxUnpackedToInt8Tensor with zero points."""
    size = size or weight.shape[1]
    groups = weight.float().reshape(len(weight), -1, size)
    low, high = groups.amin(2).clamp_max(0), groups.amax(2).clamp_min(0)
    least, most = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    scales = ((high - low) / (most - least)).to(weight.dtype)
    zeros = (least - (low / scales.float()).round()).clamp(least, most)
    codes = (groups / scales.float()[..., None]).round() + zeros[..., None]
    arrays = {
        "qdata": codes.clamp(least, most).reshape(weight.shape).to(torch.int8),
        "scale": scales,
        "zero_point": zeros.to(torch.int8),
    }
    said = {"target_dtype": f"int{bits}", "block_size": [1, size], "dtype": weight.dtype}
    return _named(name, "IntxUnpackedToInt8Tensor", arrays, said)


def float8(
    name: str,
    weight: torch.Tensor,
    block: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float8_e4m3fn,
) -> tuple[Arrays, Metadata]:
    """Make a Float8Tensor, whose codes pass no number of their dtype."""
    block = list(block or (1, weight.shape[1]))
    tiles, most = _tiles(weight.float(), block), torch.finfo(dtype).max
    scales = tiles.abs().amax((1, 3)) / most
    codes = _flat((tiles / scales[:, None, :, None]).clamp(-most, most), weight).to(dtype)
    said = {"block_size": block, "mm_config": None, "act_quant_kwargs": None, "dtype": weight.dtype}
    return _named(name, "Float8Tensor", {"qdata": codes, "scale": scales}, said)


def int4(name: str, weight: torch.Tensor, size: int) -> tuple[Arrays, Metadata]:
    """Make an Int4Tensor: two codes a byte, scales and what is added to the products with groups first."""
    groups = weight.float().reshape(*weight.shape[:-1], -1, size)
    low, high = groups.amin(-1), groups.amax(-1)
    scales = (high - low).clamp_min(1e-6) / 15
    codes = (
        ((groups - low[..., None]) / scales[..., None]).round().clamp(0, 15).sub(8).to(torch.int8).flatten(-2)
    )
    arrays = {
        "qdata": (codes[..., ::2] & 15) | (codes[..., 1::2] << 4),
        "scale": scales.transpose(-1, -2).to(weight.dtype).contiguous(),
        "zero_point": (low + 8 * scales).transpose(-1, -2).to(weight.dtype).contiguous(),
    }
    block = [1] * (weight.dim() - 1) + [size]
    return _named(name, "Int4Tensor", arrays, {"block_size": block, "shape": list(weight.shape)})


def _tiles(weight: torch.Tensor, block: Sequence[int]) -> torch.Tensor:
    rows, columns = block
    return weight.reshape(len(weight) // rows, rows, -1, columns)


def _flat(tiles: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return tiles.reshape(weight.shape)


def _named(name: str, kind: str, arrays: Arrays, said: Mapping[str, object]) -> tuple[Arrays, Metadata]:
    """Name the arrays as torchao does, and say of what class they are."""
    stem, _, last = name.rpartition(".")
    types = {
        key: {"_type": "torch.dtype", "_data": str(value).removeprefix("torch.")}
        if key.endswith("dtype")
        else value
        for key, value in said.items()
    }
    text = json.dumps({"_type": kind, "_data": types, "_tensor_data_names": list(arrays)})
    return {f"{stem}._{last}_{key}": value for key, value in arrays.items()}, {name: text}
