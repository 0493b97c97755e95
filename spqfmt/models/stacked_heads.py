"""Matrices of which a file has the rows of each kind apart, as stacks [heads, rows, columns]; GGUF has such.

- Keys and values out of the latent vector (multi-head latent attention), whose keys llama.cpp has turned.
- Queries, keys, values and gates of a gated delta net, which llama.cpp has in two matrices, by kinds.

A model's matrix has for each head the rows of all kinds, one kind after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Shape = tuple[int, ...]
_KINDS: Mapping[str, tuple[str, ...]] = {
    "kv_b_proj.weight": ("k_b_proj.weight", "v_b_proj.weight"),
    "in_proj_qkvz.weight": (
        "in_proj_q.weight",
        "in_proj_k.weight",
        "in_proj_v.weight",
        "in_proj_z.weight",
    ),
}
"""What a model calls the matrix, and the stacks that it is made of, in order; the last parts of their names."""
_TURNED = "k_b_proj.weight"
"""The stacks whose heads lie turned: [heads, columns, rows]."""
_WHOLE = {kind: whole for whole, kinds in _KINDS.items() for kind in kinds}


def has_stacks(source_kind: str | None, no_model: str | None) -> bool:
    """Whether a source has such stacks: a GGUF file of an architecture that is known.

    `no_model` says why it is not. In any other source a tensor with the name of a stack is what its maker meant by it.
    """
    return source_kind == "gguf" and not no_model


def whole_of(name: str) -> str:
    """Name the matrix that a stack belongs to; empty for any other tensor."""
    before, dot, last = _cut(name)
    return f"{before}{dot}{_WHOLE[last]}" if last in _WHOLE else ""


def stacks_of(name: str) -> tuple[str, ...]:
    """The names of the stacks that a matrix by this name may be made of; none for any other."""
    before, dot, last = _cut(name)
    return tuple(f"{before}{dot}{kind}" for kind in _KINDS.get(last, ()))


def find_wholes(shapes: Iterable[tuple[str, Shape]]) -> dict[str, tuple[str, ...]]:
    """The stacks that belong together, in order, by the name of their matrix.

    Those of which one is absent, or which do not fit together, are left.
    """
    stacks = {name: _rows(name, shape) for name, shape in shapes if len(shape) == 3 and whole_of(name)}
    found = {whole: stacks_of(whole) for whole in map(whole_of, stacks)}
    return {
        whole: parts
        for whole, parts in found.items()
        if all(part in stacks for part in parts) and len({stacks[part][::2] for part in parts}) == 1
    }


def rows_apart(shapes: Iterable[tuple[str, Shape]]) -> dict[str, tuple[str, ...]]:
    """The same of matrices none of whose stacks is turned: each gives some outputs of all heads."""
    found = find_wholes(shapes)
    return {
        whole: parts for whole, parts in found.items() if not any(_cut(part)[2] == _TURNED for part in parts)
    }


def whole_shape(stacks: Mapping[str, Shape]) -> Shape:
    """The shape of the matrix of stacks that fit together, by name."""
    shapes = [_rows(name, shape) for name, shape in stacks.items()]
    return shapes[0][0] * sum(shape[1] for shape in shapes), shapes[0][2]


def whole_dtype(stacks: Sequence[str]) -> str:
    """The dtype that holds the numbers of all, by the names of `SourceTensor`."""
    return stacks[0] if len({*stacks}) == 1 else "f32"


def put_together(stacks: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Make the matrix of stacks that fit together, by name and in order, in a dtype that holds the numbers of all."""
    import torch

    turned = [
        stack.transpose(1, 2) if name.endswith(f".{_TURNED}") else stack for name, stack in stacks.items()
    ]
    # torch.cat takes the dtype that all promote to.
    return torch.cat(turned, dim=1).reshape(-1, turned[0].shape[2])


def _cut(name: str) -> tuple[str, str, str]:
    """What is before the last two parts of a name, and these."""
    before, dot, last = name.rpartition(".")
    stem, inner, module = before.rpartition(".")
    return stem, inner, f"{module}{dot}{last}"


def _rows(name: str, shape: Shape) -> Shape:
    """The shape of a stack as [heads, rows, columns]."""
    return (shape[0], shape[2], shape[1]) if _cut(name)[2] == _TURNED else shape
