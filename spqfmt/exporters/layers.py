"""What exports to Hugging Face folders with codes of layers have in common."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spqfmt.exporters.base import EvenGrid, ExportModel, ExportWeight, refuse
from spqfmt.exporters.huggingface import ExportTensor, export_huggingface
from spqfmt.kernels.torch_arrays import to_torch
from spqfmt.schemes.base import Float32
from spqfmt.schemes.floats import narrow, widen

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Made:
    """An array of a layer, which is made as it is written."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    make: Callable[[], Any]
    tied_to: str | None = None

    def load(self) -> torch.Tensor:
        """Make the array, of the dtype and shape that it says."""
        return to_torch(self.make(), self.dtype, self.shape)


def is_layer(weight: ExportWeight) -> bool:
    """Whether it is a layer of codes; embeddings and heads such programs take as values."""
    return weight.has_codes and weight.role not in {"embedding", "head"}


def fitting(weight: ExportWeight, form: str) -> EvenGrid:
    """The numbers of a layer's groups. Raises EncodeError where these are no scales and zero points of codes."""
    if weight.why_no_grid:
        refuse(weight.name, weight.why_no_grid, form)
    if not weight.name.endswith(".weight"):
        refuse(weight.name, "its name does not end with .weight", form)
    if weight.is_transposed:
        refuse(weight.name, "its rows are inputs", form)
    grid = weight.grid()
    if grid.minimum is not None:
        refuse(weight.name, "its groups have minimums instead of zero points", form)
    if grid.zero.min() < 0 or grid.zero.max() >> grid.bits:
        refuse(weight.name, "a zero point lies outside of the codes", form)
    return grid


def codes_of(weight: ExportWeight, bits: int, form: str) -> Any:
    """The codes, uint8 [rows, columns]. Raises EncodeError where one has more than these bits."""
    found = weight.codes()
    if found.max() >> bits:
        refuse(weight.name, f"a code has more than its {bits} bits", form)
    return found


def holds(numbers: Float32, dtype: str) -> bool:
    """Whether all are numbers of a narrower dtype."""
    return bool((widen(narrow(numbers, dtype), dtype) == numbers).all())


def write_folder(
    model: ExportModel, out: Path, tensors: Iterable[ExportTensor], quantizer: Mapping[str, Any]
) -> tuple[str, ...]:
    """Write the model's folder, its config.json with what it says of the quantizer; names of the files of weights."""
    config = {**model.config, "quantization_config": quantizer}
    text = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
    assets = {**model.assets, "config.json": text}
    return export_huggingface(out, tensors, assets, facts=model.facts, others=model.others)
