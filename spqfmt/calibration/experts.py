"""Experts that transformers merges into one parameter [experts, rows, columns], found by structure.

A source tensor of an expert is some rows of one slice of such a parameter. What it reads is seen where the model
multiplies: a call of torch's `linear` with that slice. No module stands there that a hook could be put on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from spqfmt.calibration.sites import FoundSite
from spqfmt.quantize.calibrated import Result

Taker = Callable[[torch.Tensor], None]


@dataclass(frozen=True)
class ExpertRows:
    """Rows `first_row` to `first_row + rows` of slice `expert` of a merged parameter."""

    parameter: str
    expert: int
    first_row: int
    rows: int

    @property
    def input_name(self) -> str:
        """What all parts of the slice read."""
        return f"{self.parameter}[{self.expert}]"

    @property
    def name(self) -> str:
        """The name of the part, as of a module."""
        return f"{self.input_name}[{self.first_row}:{self.first_row + self.rows}]"


def expert_sites(parts: Iterable[ExpertRows]) -> list[FoundSite]:
    """The parts of each slice read one input."""
    slices: dict[str, list[str]] = {}
    for part in parts:
        slices.setdefault(part.input_name, []).append(part.name)
    return [FoundSite(tuple(names), merged=input_name) for input_name, names in slices.items()]


def of_expert(name: str, result: Result, n_tokens: int) -> Result:
    """What becomes of a method's result: inputs stay float, since no layer is there that could treat them."""
    notes = result.notes
    if result.activation_clamp is not None or result.activation_quantization is not None:
        notes += ("inputs of merged experts are neither clamped nor quantized",)
    if not n_tokens:
        notes += (f"{name}: no sample reached this expert, its weights are rounded to nearest",)
    return replace(result, activation_clamp=None, activation_quantization=None, notes=notes)


def find_part(
    block: torch.nn.Module, parameter: str, value: torch.Tensor, taken: set[ExpertRows]
) -> ExpertRows | None:
    """Where the tensor `value` [rows, columns] lies in a filled parameter; None when it does not lie there as it is."""
    merged = block.get_parameter(parameter)
    if merged.dim() != 3 or value.dim() != 2 or merged.shape[2] != value.shape[1]:
        return None
    value = value.to(merged.dtype)
    rows = value.shape[0]
    for expert, first in torch.nonzero(merged[:, :, 0] == value[0, 0]).tolist():
        part = ExpertRows(parameter, expert, first, rows)
        if part not in taken and torch.equal(merged[expert, first : first + rows], value):
            return part
    return None


def put_part(block: torch.nn.Module, part: ExpertRows, value: torch.Tensor) -> None:
    """Let the block compute with `value`, [rows, columns]."""
    merged = block.get_parameter(part.parameter)
    merged[part.expert, part.first_row : part.first_row + part.rows].copy_(value)


@contextmanager
def seen_inputs(block: torch.nn.Module, takers: Mapping[str, Taker]) -> Iterator[None]:
    """While the context lasts, what a slice of a merged parameter is multiplied with goes to the taker of its name."""
    if not takers:
        yield
        return
    merged = {name: block.get_parameter(name) for name in {taker.rpartition("[")[0] for taker in takers}}
    with _Linear(merged, takers):
        yield


class _Linear(TorchFunctionMode):
    def __init__(self, merged: Mapping[str, torch.Tensor], takers: Mapping[str, Taker]) -> None:
        super().__init__()
        self._merged = merged
        self._takers = takers

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.nn.functional.linear and isinstance(args[1], torch.Tensor):
            take = self._takers.get(self._name(args[1]))
            if take is not None:
                take(args[0])
        return func(*args, **(kwargs or {}))

    def _name(self, weight: torch.Tensor) -> str:
        for name, merged in self._merged.items():
            slice_bytes = merged.stride(0) * merged.element_size()
            expert, rest = divmod(weight.data_ptr() - merged.data_ptr(), slice_bytes)
            if weight.shape == merged.shape[1:] and rest == 0 and 0 <= expert < len(merged):
                return f"{name}[{expert}]"
        return ""
