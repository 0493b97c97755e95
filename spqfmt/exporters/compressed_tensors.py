"""compressed-tensors: pack-quantized codes of 4 and 8 bits; int-quantized ones where inputs are rounded as well.

    NAME.weight_packed      I32 [out, ceil(in * bits / 32)], codes from 0, the first in the lowest bits
    NAME.weight_shape       I64 [2]
    NAME.weight_scale       [out, groups], groups 1 for one scale a row (strategy channel)
    NAME.weight_zero_point  I32 [ceil(out * bits / 32), groups], packed along the rows; asymmetric ones have it

    NAME.weight             I8 [out, in], for inputs of 8 bits
    NAME.weight_scale       [out, 1]

The library computes (code - zero point) * scale in the dtype of the scales. These are written in the dtype of the
weights where that holds them all, and the product is then rounded once, as here; else in F32, whose product is rounded
to the weights' dtype afterwards, as here too. Codes of 2 and 3 bits are written in 4: programs that serve such models
compute with 4 and 8.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from spqfmt.errors import EncodeError
from spqfmt.exporters.base import (
    OF_ANOTHER_ORDER,
    OF_NO_LAYER,
    EvenGrid,
    Exported,
    ExportModel,
    ExportWeight,
    refuse,
)
from spqfmt.exporters.huggingface import ExportTensor
from spqfmt.exporters.layers import Made, codes_of, fitting, holds, is_layer, write_folder
from spqfmt.exporters.words import WORD, in_words, middle_shift
from spqfmt.schemes.floats import narrow

_FORM = "compressed-tensors"
_NARROW = ("f16", "bf16")


class _Way(NamedTuple):
    """How the codes of a weight are written: what the library calls its scheme."""

    bits: int
    group_size: int | None
    is_symmetric: bool
    rounds_inputs: bool

    @property
    def format(self) -> str:
        return "int-quantized" if self.rounds_inputs else "pack-quantized"

    def to_json(self, targets: list[str]) -> dict[str, Any]:
        """The scheme as config.json states it."""
        weights: dict[str, Any] = {
            "num_bits": self.bits,
            "type": "int",
            "symmetric": self.is_symmetric,
            "strategy": "channel" if self.group_size is None else "group",
            "group_size": self.group_size,
            "dynamic": False,
        }
        inputs = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
        return {
            "targets": targets,
            "weights": weights,
            "input_activations": inputs if self.rounds_inputs else None,
            "output_activations": None,
            "format": self.format,
        }


class CompressedTensorsExport:
    """Linear layers as codes; embeddings, heads and all else as plain values."""

    name = _FORM

    def export(self, model: ExportModel, out: Path) -> Exported:
        """Write a folder of safetensors whose config.json has the scheme of each layer."""
        tensors: list[ExportTensor] = []
        ways: dict[_Way, list[str]] = {}
        ignored, plain = [], []
        for weight in model.weights:
            module = weight.name.removesuffix(".weight")
            if not is_layer(weight):
                tensors.append(weight)
                plain += [weight.name] if weight.has_codes else []
                is_matrix = module != weight.name and len(weight.shape) == 2 and weight.role != "embedding"
                ignored += [module] if is_matrix else []
                continue
            grid = _fitting(weight)
            way = _way(weight, grid)
            ways.setdefault(way, []).append(module)
            tensors += _arrays(weight, grid, way)
        if not ways:
            raise EncodeError(
                f"no layer is stored as codes that {_FORM} holds; --as dense writes plain weights"
            )
        files = write_folder(model, out, tensors, _config(ways, ignored))
        return Exported(files, dict.fromkeys(plain, OF_NO_LAYER))


def _fitting(weight: ExportWeight) -> EvenGrid:
    """The numbers of its groups. Raises EncodeError where the form has no place for them."""
    grid, columns = fitting(weight, _FORM), weight.shape[1]
    if grid.column_groups is not None:
        refuse(weight.name, OF_ANOTHER_ORDER, _FORM)
    if columns % grid.group_size:
        refuse(weight.name, f"{columns} columns are no multiple of its groups of {grid.group_size}", _FORM)
    return grid


def _way(weight: ExportWeight, grid: EvenGrid) -> _Way:
    bits = 4 if grid.bits <= 4 else 8
    is_row = grid.scale.shape[1] == 1
    rounds_inputs = weight.rounds_inputs and bits == 8 and is_row and grid.is_symmetric
    return _Way(bits, None if is_row else grid.group_size, grid.is_symmetric, rounds_inputs)


def _arrays(weight: ExportWeight, grid: EvenGrid, way: _Way) -> Iterator[ExportTensor]:
    """The arrays of a weight, which are read as they are written: none is held before."""
    name, (rows, columns), groups = weight.name, weight.shape, grid.scale.shape[1]
    bits, from_bits = way.bits, grid.bits
    shift = middle_shift(from_bits, bits) if way.is_symmetric else np.uint8(0)

    def codes() -> Any:
        return codes_of(weight, from_bits, _FORM) + shift

    if way.rounds_inputs:
        yield Made(name, (rows, columns), "i8", lambda: (codes() - np.uint8(128)).view(np.int8))
    else:
        packed = f"{name}_packed", (rows, -(-columns * bits // WORD))
        yield Made(*packed, "i32", lambda: in_words(codes(), bits))
        yield Made(f"{name}_shape", (2,), "i64", lambda: np.array([rows, columns], np.int64))
    dtype = weight.dtype if weight.dtype in _NARROW and holds(grid.scale, weight.dtype) else "f32"
    yield Made(f"{name}_scale", (rows, groups), dtype, lambda: narrow(weight.grid().scale, dtype))
    if not way.is_symmetric:
        due = f"{name}_zero_point", (-(-rows * bits // WORD), groups)
        yield Made(*due, "i32", lambda: in_words(weight.grid().zero.T.astype(np.uint8), bits).T)


def _config(ways: dict[_Way, list[str]], ignored: list[str]) -> dict[str, Any]:
    """What config.json says of the quantizer: a scheme for all linear layers, or each with its own."""
    formats = sorted({way.format for way in ways})
    groups = {
        f"group_{i}": way.to_json(["Linear"] if len(ways) == 1 else modules)
        for i, (way, modules) in enumerate(ways.items())
    }
    return {
        "quant_method": _FORM,
        "format": formats[0] if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ignored,
        "kv_cache_scheme": None,
    }


EXPORTER = CompressedTensorsExport()
