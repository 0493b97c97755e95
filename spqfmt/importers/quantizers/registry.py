"""Finds the families of this folder, and what of a checkpoint they know."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import spqfmt.importers.quantizers as package
from spqfmt.errors import ImporterError
from spqfmt.importers._checkpoint import place_of, source_tensors
from spqfmt.importers._safetensors import Stored
from spqfmt.importers.base import SourcePart, SourceTensor
from spqfmt.importers.quantizers.base import Checkpoint, CodedWeight, Family, LeftAsArrays
from spqfmt.records import dense_bytes
from spqfmt.registry import find
from spqfmt.schemes.floats import narrow

if TYPE_CHECKING:
    import torch


@functools.cache
def families() -> tuple[Family, ...]:
    """All families, by name of their module."""
    return tuple(find(package, "FAMILY"))


def coded_tensors(
    stored: Mapping[str, Stored], config: Mapping[str, Any], architecture: str, folder: Path, prefix: str = ""
) -> tuple[SourceTensor, ...]:
    """The source's tensors, with the arrays that a family knows taken together to the weights that they stand for.

    What no family knows stays an array, of its own bytes. `prefix` is that of `source_tensors`. Raises ImporterError.
    """
    checkpoint = Checkpoint.of(stored, config, folder)
    found = [one for family in families() for one in family.find(checkpoint)]
    coded = {weight.name: weight for weight in found if isinstance(weight, CodedWeight)}
    why = {one.name: one.why for one in found if isinstance(one, LeftAsArrays)}
    taken = {name for weight in coded.values() for name in weight.arrays}
    left = {name: array for name, array in stored.items() if name not in taken}
    if twice := next((name for name in coded if name in left), None):
        raise ImporterError(f"tensor {twice!r} is there as a weight and as codes; download the model again")
    left |= {weight.name: _as_weight(weight, stored) for weight in coded.values()}
    tensors = []
    for tensor in source_tensors(left, config, architecture, folder=folder, prefix=prefix):
        name = tensor.name.removeprefix(prefix)
        weight = coded.get(name) if tensor.tied_to is None else None
        whole = tensor if weight is None else _with_codes(tensor, weight, stored, folder)
        tensors.append(replace(whole, why_no_codes=why.get(name, "")))
    return tuple(tensors)


def _as_weight(weight: CodedWeight, stored: Mapping[str, Stored]) -> Stored:
    """The weight as an array that lies nowhere."""
    file = stored[next(iter(weight.arrays))].file
    n_bytes = dense_bytes(weight.dtype, prod(weight.shape))
    return Stored(
        file=file,
        shape=weight.shape,
        dtype=weight.dtype,
        offset=None,
        n_bytes=n_bytes,
        read=lambda: _values(weight),
    )


def _values(weight: CodedWeight) -> torch.Tensor:
    """The values that a reader restores of its codes."""
    # torch takes seconds to import: not where only names are asked for.
    from spqfmt.kernels.torch_arrays import to_torch

    matrix = narrow(weight.stored().dequantize(), weight.dtype)
    if weight.has_turned_view if weight.view else weight.transposed:
        *stack, columns, rows = weight.view or weight.shape
        matrix = matrix.reshape(*stack, rows, columns).swapaxes(-1, -2)
    return to_torch(matrix, weight.dtype, weight.shape)


def _with_codes(
    tensor: SourceTensor, weight: CodedWeight, stored: Mapping[str, Stored], folder: Path
) -> SourceTensor:
    places = {
        name: place_of(stored[name], folder) for name, made in weight.arrays.items() if made is not None
    }
    parts = [
        SourcePart(place, stored[name].n_bytes, weight.arrays[name] or {})
        for name, place in places.items()
        if place is not None
    ]
    return replace(
        tensor,
        transposed=weight.transposed,
        view=weight.view,
        has_turned_view=weight.has_turned_view,
        form=weight.form,
        stored=weight.stored,
        parts=tuple(parts) if len(parts) == len(places) else (),
    )
