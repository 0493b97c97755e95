"""Keys and values out of the latent vector (multi-head latent attention), which GGUF has apart and keys turned.

A model has one matrix, [heads * (keys + values), rank] of each head's rows, as `kv_b_proj.weight`. llama.cpp has it as
two stacks: `k_b_proj.weight` [heads, rank, keys] and `v_b_proj.weight` [heads, values, rank].
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_HALF = re.compile(r"(?P<before>.*)\.[kv]_b_proj\.weight")
Shape = tuple[int, ...]


def joined_name(name: str) -> str:
    """Name the matrix that a stack of keys or values belongs to; empty for any other tensor."""
    match = _HALF.fullmatch(name)
    return "" if match is None else f"{match['before']}.kv_b_proj.weight"


def halves_of(name: str) -> tuple[str, str]:
    """The names of the stacks of keys and of values of a matrix by this name, which ends with kv_b_proj.weight."""
    before = name.removesuffix("kv_b_proj.weight")
    return f"{before}k_b_proj.weight", f"{before}v_b_proj.weight"


def pairs(shapes: Iterable[tuple[str, Shape]]) -> dict[str, tuple[str, str]]:
    """The stacks that belong together, by the name of their matrix: of keys first.

    Stacks that are alone, or of other heads or ranks, are left.
    """
    stacks = {name: shape for name, shape in shapes if len(shape) == 3 and joined_name(name)}
    found = {joined_name(name): halves_of(joined_name(name)) for name in stacks}
    return {
        name: (keys, values)
        for name, (keys, values) in found.items()
        if keys in stacks and values in stacks and stacks[keys][:2] == stacks[values][::2]
    }


def joined_shape(keys: Shape, values: Shape) -> Shape:
    """The shape of the matrix of two stacks."""
    return keys[0] * (keys[2] + values[1]), keys[1]


def joined_dtype(keys: str, values: str) -> str:
    """The dtype that holds the numbers of both, by the names of `SourceTensor`."""
    return keys if keys == values else "f32"


def joined(keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Put the matrix together, in a dtype that holds the numbers of both."""
    import torch

    wide = torch.promote_types(keys.dtype, values.dtype)
    heads = torch.cat([keys.transpose(1, 2).to(wide), values.to(wide)], dim=1)
    return heads.reshape(-1, heads.shape[-1])


def with_whole(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors with each pair of stacks as the matrix that it is."""
    found = pairs((name, tuple(tensor.shape)) for name, tensor in tensors.items())
    halves = {half for both in found.values() for half in both}
    whole = {name: joined(*(tensors[half] for half in both)) for name, both in found.items()}
    return {name: tensor for name, tensor in tensors.items() if name not in halves} | whole
