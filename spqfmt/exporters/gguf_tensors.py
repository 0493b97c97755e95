"""The tensors of a GGUF file: blocks of codes, plain values, and experts in one stack, each made as it is written."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spqfmt.exporters.base import ExportWeight, refuse
from spqfmt.exporters.gguf_models import Config, GgufFamily, interleaved
from spqfmt.exporters.gguf_types import Fit, blocks, fit
from spqfmt.kernels.ggml_types import BLOCK_TYPES
from spqfmt.kernels.torch_arrays import to_numpy

FORM = "GGUF"
_PLAIN = {"f32": "F32", "f16": "F16", "bf16": "BF16"}
_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(.+)")


@dataclass(frozen=True)
class GgufOutput:
    """A tensor of the file. `make` gives its bytes, in any shape."""

    name: str
    shape: tuple[int, ...]
    type: str
    make: Callable[[], NDArray[Any]]


@dataclass(frozen=True)
class Tensors:
    """Makes the tensors of a family's model; `name_of` gives ggml's names."""

    family: GgufFamily
    config: Config
    name_of: Callable[[str], str]

    def of(self, weight: ExportWeight) -> tuple[GgufOutput, bool]:
        """A tensor, and whether its codes are written as the values that they stand for.

        Raises EncodeError for a layer whose codes fit no blocks.
        """
        name = self.name_of(weight.name)
        if not weight.has_codes:
            return self._plain(weight, name), False
        found = _fit(weight)
        if not found.types and weight.role not in {"embedding", "head"}:
            refuse(weight.name, found.why, FORM)
        return self._coded(weight, found.types[0], name) if found.types else self._plain(
            weight, name
        ), not found.types

    def stack(self, weights: Sequence[ExportWeight]) -> GgufOutput:
        """The matrices of a layer's experts, in their order, as one tensor. Raises EncodeError."""
        merged = _EXPERT.fullmatch(weights[0].name)
        assert merged is not None
        name = self.name_of(f"{merged[1]}.{merged[3]}")
        for weight in weights:
            if weight.has_codes != weights[0].has_codes or weight.shape != weights[0].shape:
                refuse(weight.name, "it is not as the other experts are", FORM)
        if not weights[0].has_codes:
            parts = [self._plain(weight, name) for weight in weights]
        else:
            fits = [_fit(weight) for weight in weights]
            for weight, found in zip(weights, fits, strict=True):
                if not found.types:
                    refuse(weight.name, found.why, FORM)
            kinds = [kind for kind in fits[0].types if all(kind in found.types for found in fits)]
            if not kinds:
                refuse(weights[0].name, "no one type of blocks holds the codes of all experts", FORM)
            parts = [self._coded(weight, kinds[0], name) for weight in weights]
        return GgufOutput(
            name,
            shape=(len(parts), *parts[0].shape),
            type=parts[0].type,
            make=lambda: np.stack([part.make() for part in parts]),
        )

    def _order(self, weight: ExportWeight) -> NDArray[np.int64] | None:
        """Which row of the matrix is each row of the file's; None where they are in order."""
        return interleaved(weight.name, weight.shape[0], self.config) if self.family.interleaves else None

    def _coded(self, weight: ExportWeight, kind: str, name: str) -> GgufOutput:
        order = self._order(weight)

        def make() -> NDArray[Any]:
            made = blocks(BLOCK_TYPES[kind], weight.grid(), weight.codes())
            return made if order is None else made[order]

        shape = weight.shape[::-1] if weight.is_transposed else weight.shape
        return GgufOutput(name, shape, kind, make)

    def _plain(self, weight: ExportWeight, name: str) -> GgufOutput:
        """The values in their own dtype; those of one dimension in F32, as llama.cpp wants norms and biases."""
        shape, order = weight.shape, self._order(weight)
        adds = self.family.adds_one and name.endswith("norm.weight")
        is_wide = len(shape) < 2 or adds
        turns = self.family.transposes and ".h." in weight.name and len(shape) == 2
        if weight.dtype not in _PLAIN:
            refuse(weight.name, f"its values are {weight.dtype}", FORM)

        def make() -> NDArray[Any]:
            value = weight.load()
            value = value.float() if is_wide else value
            value = value + 1 if adds else value
            found = to_numpy(value.t() if turns else value)
            return found if order is None else found[order]

        kind = "F32" if is_wide else _PLAIN[weight.dtype]
        return GgufOutput(name, shape[::-1] if turns else shape, kind, make)


def stacks(weights: Sequence[ExportWeight]) -> tuple[list[ExportWeight], list[list[ExportWeight]]]:
    """The weights that stand alone, and those of experts by what they are together, each in their order.

    Raises EncodeError where an expert is missing.
    """
    alone: list[ExportWeight] = []
    found: dict[tuple[str, str], dict[int, ExportWeight]] = {}
    for weight in weights:
        expert = _EXPERT.fullmatch(weight.name)
        if expert is None:
            alone.append(weight)
        else:
            found.setdefault((expert[1], expert[3]), {})[int(expert[2])] = weight
    for by_number in found.values():
        if sorted(by_number) != list(range(len(by_number))):
            refuse(next(iter(by_number.values())).name, "an expert beside it is missing", FORM)
    return alone, [[by_number[i] for i in range(len(by_number))] for by_number in found.values()]


def _fit(weight: ExportWeight) -> Fit:
    """The types of blocks that hold its codes, or why none does."""
    return Fit((), weight.why_no_grid) if weight.why_no_grid else fit(weight.grid(), weight.codes())
