"""GPTQ's layout: codes of 2, 3, 4 or 8 bits, for programs that serve AutoGPTQ's and GPTQModel's files.

    NAME.qweight  I32 [in * bits / 32, out], codes from 0, those of an output in words one below the other
    NAME.qzeros   I32 [groups, out * bits / 32], zero points, which version 1 stores less one
    NAME.scales   F16 [groups, out], or BF16 where the weights are, and only this holds them
    NAME.g_idx    I32 [in], the group of each input

What is written stands for (code - zero point) * scale of the very numbers in the file; programs round the product to
the dtype that they compute in. Version 1 is written where no zero point is 0: that one it stores as the largest
number, which programs read in two ways. Version 2 stores zero points as they are.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from spqfmt.errors import EncodeError
from spqfmt.exporters.base import OF_NO_LAYER, EvenGrid, Exported, ExportModel, ExportWeight, refuse
from spqfmt.exporters.huggingface import ExportTensor
from spqfmt.exporters.layers import Made, codes_of, fitting, holds, is_layer, write_folder
from spqfmt.exporters.words import WORD, in_words, middle_shift
from spqfmt.schemes.floats import narrow
from spqfmt.version import __version__

_FORM = "GPTQ"
_BITS = (2, 3, 4, 8)


class _Way(NamedTuple):
    """What config.json says of a layer."""

    bits: int
    group_size: int
    sym: bool
    desc_act: bool


class _Layer(NamedTuple):
    """A layer that fits; its numbers are read again as they are written."""

    weight: ExportWeight
    way: _Way
    from_bits: int
    groups: int
    scale_dtype: str


class GptqExport:
    """Linear layers as codes; embeddings, heads and all else as plain values."""

    name = "gptq"

    def export(self, model: ExportModel, out: Path) -> Exported:
        """Write a folder of safetensors whose config.json has the bits and groups of the layers."""
        tensors: list[ExportTensor] = []
        layers: list[_Layer] = []
        left, plain = [], []
        has_zero = False
        for weight in model.weights:
            if not is_layer(weight):
                tensors.append(weight)
                plain += [weight.name] if weight.has_codes else []
                is_matrix = weight.name.endswith(".weight") and len(weight.shape) == 2
                left += [weight.name] if is_matrix and weight.role in {"linear", "other"} else []
                continue
            grid = fitting(weight, _FORM)
            layers.append(_layer(weight, grid))
            has_zero |= bool((grid.zero == 0).any())
        if not layers:
            raise EncodeError(
                f"no layer is stored as codes that {_FORM} holds; --as dense writes plain weights"
            )
        version = 2 if has_zero else 1
        tensors += [array for layer in layers for array in _arrays(layer, version)]
        files = write_folder(model, out, tensors, _config(layers, left, version))
        return Exported(files, dict.fromkeys(plain, OF_NO_LAYER))


def _layer(weight: ExportWeight, grid: EvenGrid) -> _Layer:
    bits = next(bits for bits in _BITS if bits >= grid.bits)
    for n in weight.shape:
        if n * bits % WORD:
            refuse(weight.name, f"{n} codes of {bits} bits fill no whole words", _FORM)
    dtypes = ("f16", "bf16") if weight.dtype == "bf16" else ("f16",)
    dtype = next((dtype for dtype in dtypes if holds(grid.scale, dtype)), None)
    if dtype is None:
        refuse(
            weight.name,
            f"its scales are no numbers of {' or '.join(dtype.upper() for dtype in dtypes)}",
            _FORM,
        )
    groups = grid.scale.shape[1]
    size = -1 if groups == 1 else grid.group_size
    way = _Way(bits, size, grid.is_symmetric, grid.column_groups is not None)
    return _Layer(weight, way, from_bits=grid.bits, groups=groups, scale_dtype=dtype)


def _arrays(layer: _Layer, version: int) -> Iterator[ExportTensor]:
    """The arrays of a layer."""
    weight, (bits, _, is_symmetric, _) = layer.weight, layer.way
    (rows, columns), groups, name = weight.shape, layer.groups, weight.name
    shift = middle_shift(layer.from_bits, bits) if is_symmetric else np.uint8(0)

    def codes() -> Any:
        return in_words(codes_of(weight, layer.from_bits, _FORM) + shift, bits).T

    def zeros() -> Any:
        found = weight.grid().zero.T.astype(np.uint8) + shift
        return in_words(found - np.uint8(version == 1), bits)

    def groups_of_inputs() -> Any:
        grid = weight.grid()
        found = np.arange(columns) // grid.group_size if grid.column_groups is None else grid.column_groups
        return found.astype(np.int32)

    def scales() -> Any:
        return narrow(weight.grid().scale.T, layer.scale_dtype)

    stem = name.removesuffix("weight")
    yield Made(f"{stem}qweight", (columns * bits // WORD, rows), "i32", codes)
    yield Made(f"{stem}qzeros", (groups, rows * bits // WORD), "i32", zeros)
    yield Made(f"{stem}scales", (groups, rows), layer.scale_dtype, scales)
    yield Made(f"{stem}g_idx", (columns,), "i32", groups_of_inputs)


def _config(layers: list[_Layer], left: list[str], version: int) -> dict[str, Any]:
    """What config.json says of the quantizer; `dynamic` names the layers that are otherwise than most, or no codes."""
    usual = Counter(layer.way for layer in layers).most_common(1)[0][0]
    dynamic: dict[str, Mapping[str, Any]] = {
        f"+:{_pattern(layer.weight.name)}": layer.way._asdict() for layer in layers if layer.way != usual
    }
    dynamic |= {f"-:{_pattern(name)}": {} for name in left}
    return {
        "quant_method": "gptq",
        **usual._asdict(),
        "checkpoint_format": "gptq" if version == 1 else "gptq_v2",
        "pack_dtype": "int32",
        "lm_head": False,
        **({"dynamic": dynamic} if dynamic else {}),
        "meta": {"quantizer": [f"spqfmt:{__version__}"]},
    }


def _pattern(name: str) -> str:
    return f"^{re.escape(name.removesuffix('.weight'))}$"


EXPORTER = GptqExport()
