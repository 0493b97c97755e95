"""Experts that a model holds as one parameter [experts, rows, columns], found by structure.

A source tensor of an expert is some rows of one slice of such a parameter, or all of it, transposed or not. What it
reads is seen where the model multiplies: a call of torch's `linear`, `matmul` or `bmm` with a slice, or with all of
them. No module stands there that a hook could be put on. Experts of one tensor share the statistics of their inputs, as
they share an order of columns and scales of these.
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


@dataclass(frozen=True)
class ExpertStack:
    """All slices of a parameter, which are [columns, rows] where it is `transposed`."""

    parameter: str
    transposed: bool

    @property
    def input_name(self) -> str:
        """What the slices read, each for itself."""
        return f"{self.parameter}[:]"

    @property
    def name(self) -> str:
        """The name of the stack, as of a module."""
        return self.input_name


def expert_sites(parts: Iterable[ExpertRows | ExpertStack]) -> list[FoundSite]:
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
    value = value.to(merged)
    rows = value.shape[0]
    for expert, first in torch.nonzero(merged[:, :, 0] == value[0, 0]).tolist():
        part = ExpertRows(parameter, expert, first, rows)
        if part not in taken and torch.equal(merged[expert, first : first + rows], value):
            return part
    return None


def find_stack(
    block: torch.nn.Module, parameter: str, shape: tuple[int, ...], *, transposed: bool
) -> ExpertStack | None:
    """The stack that a parameter is; None where it is none of this shape."""
    merged = dict(block.named_parameters()).get(parameter)
    if merged is None or len(shape) != 3 or merged.shape != shape:
        return None
    return ExpertStack(parameter, transposed)


def put_part(block: torch.nn.Module, part: ExpertRows | ExpertStack, value: torch.Tensor) -> None:
    """Let the block compute with `value`, [rows, columns], of a stack those of all experts."""
    merged = block.get_parameter(part.parameter)
    if isinstance(part, ExpertStack):
        matrices = merged.transpose(1, 2) if part.transposed else merged
        matrices.copy_(value.reshape(matrices.shape))
        return
    merged[part.expert, part.first_row : part.first_row + part.rows].copy_(value)


@contextmanager
def seen_inputs(block: torch.nn.Module, takers: Mapping[str, Taker]) -> Iterator[None]:
    """While the context lasts, what a slice of a merged parameter is multiplied with goes to the taker of its name."""
    if not takers:
        yield
        return
    merged = {name: block.get_parameter(name) for name in {taker.rpartition("[")[0] for taker in takers}}
    with _Products(merged, takers):
        yield


_OF_SLICES = frozenset({"linear", "matmul", "__matmul__"})


class _Products(TorchFunctionMode):
    def __init__(self, merged: Mapping[str, torch.Tensor], takers: Mapping[str, Taker]) -> None:
        super().__init__()
        self._merged = merged
        self._takers = takers

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _OF_SLICES and len(args) > 1 and isinstance(args[1], torch.Tensor):
            of_slice = self._name(args[1])
            take = self._takers.get(of_slice) or self._takers.get(f"{of_slice.rpartition('[')[0]}[:]")
            if take is not None:
                take(args[0])
        elif name == "bmm":
            self._take_batch(args[0], args[1])
        return func(*args, **(kwargs or {}))

    def _take_batch(self, x: torch.Tensor, weights: torch.Tensor) -> None:
        """Take inputs [experts, n, columns] of all slices at once; zero rows are none of an expert."""
        for name, merged in self._merged.items():
            take = self._takers.get(f"{name}[:]")
            if take is not None and weights.data_ptr() == merged.data_ptr() and weights.shape == merged.shape:
                take(x[(x != 0).any(-1)])

    def _name(self, weight: torch.Tensor) -> str:
        for name, merged in self._merged.items():
            slice_bytes = merged.stride(0) * merged.element_size()
            expert, rest = divmod(weight.data_ptr() - merged.data_ptr(), slice_bytes)
            if weight.shape == merged.shape[1:] and rest == 0 and 0 <= expert < len(merged):
                return f"{name}[{expert}]"
        return ""
