"""NVFP4: codes of four bits, 16 to a scale of F8_E4M3, and one number more for the whole tensor.

    NAME.weight_packed        U8 [out, in / 2]: compressed-tensors; scales are divided by the number
    NAME.weight_scale         F8_E4M3 [out, in / 16]
    NAME.weight_global_scale  F32 [1]

    NAME.weight               U8 [out, in / 2]: ModelOpt; scales are multiplied by the number
    NAME.weight_scale         F8_E4M3 [out, in / 16]
    NAME.weight_scale_2       F32 []

The number is the one step of a supergroup over all scales. A division is a multiplication by the reciprocal wherever
that gives the same bfloat16, the dtype that compressed-tensors restores, for every code with every scale that is there;
elsewhere the scales are numbers of 256 levels, the quotients.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod

import numpy as np

from spqfmt.codecs.elements import Elements
from spqfmt.errors import ImporterError
from spqfmt.importers.quantizers.base import (
    COMPRESSED_TENSORS,
    Checkpoint,
    CodedWeight,
    LeftAsArrays,
    misfit,
    missing,
)
from spqfmt.importers.quantizers.fp4 import CODES, check_said, unpacked
from spqfmt.schemes.base import Float32
from spqfmt.schemes.floats import narrow, overflow_allowed, small_float_values
from spqfmt.schemes.group_numbers import GroupValues
from spqfmt.schemes.grouped import Grouped

_COLUMNS = 16
_FORM = "NVFP4"
_SCALES = "f8_e4m3"
_PACKED = "nvfp4-pack-quantized"
_DIVIDING: Mapping[str, frozenset[str]] = {COMPRESSED_TENSORS: frozenset({_PACKED, "mixed-precision"})}
_MULTIPLYING: Mapping[str, frozenset[str]] = {"modelopt": frozenset()}


class Nvfp4:
    """Codes of four bits with scales of eight."""

    def find(self, checkpoint: Checkpoint) -> Iterator[CodedWeight | LeftAsArrays]:
        """The weights that have a number for the whole tensor beside codes and scales, as `Family.find` says."""
        arrays = checkpoint.arrays
        _check_complete(checkpoint)
        for scales in [name for name, array in arrays.items() if array.dtype == _SCALES]:
            name = scales.removesuffix("_scale")
            codes = next((n for n in (f"{name}_packed", name) if n != scales and n in arrays), "")
            one = f"{name}_global_scale" if codes.endswith("_packed") else f"{name}_scale_2"
            if not codes or one not in arrays or arrays[codes].dtype != "u8":
                continue
            methods = _MULTIPLYING if codes == name else _DIVIDING
            if not checkpoint.quantizer.writes(_FORM, methods, codes):
                continue
            if f"{name}_zero_point" in arrays:
                yield LeftAsArrays(codes, "zero points of NVFP4")
            else:
                check_said(checkpoint, codes, form=_FORM, packed=_PACKED, columns=_COLUMNS)
                yield _weight(checkpoint, name, (codes, scales, one))


def _check_complete(checkpoint: Checkpoint) -> None:
    """Raise ImporterError for codes without their scales, where the config says that all are of this form."""
    if checkpoint.quantizer.formats != {_PACKED}:
        return
    arrays = checkpoint.arrays
    for name in arrays:
        if not name.endswith(".weight_packed"):
            continue
        stem = name.removesuffix("_packed")
        for beside in (f"{stem}_scale", f"{stem}_global_scale"):
            if beside not in arrays:
                raise missing(beside, name)
        found = arrays[name].dtype, arrays[f"{stem}_scale"].dtype
        if found != ("u8", _SCALES):
            raise misfit(arrays, f"{stem}_scale", name, f": {found[0]} and {found[1]}")


def _weight(checkpoint: Checkpoint, name: str, arrays: tuple[str, str, str]) -> CodedWeight:
    of_codes, of_scales, one = arrays
    codes, scales, number = (checkpoint.arrays[array] for array in arrays)
    divides = of_codes != name
    rows, columns = (codes.shape[0], 2 * codes.shape[1]) if len(codes.shape) == 2 else (0, 0)
    if not rows or scales.shape != (rows, -(-columns // _COLUMNS)):
        raise misfit(checkpoint.arrays, of_scales, of_codes)
    if number.dtype != "f32" or prod(number.shape) != 1:
        raise misfit(checkpoint.arrays, one, of_codes)

    def stored() -> Grouped:
        factor = checkpoint.scales(one, "f32").reshape(-1)[0]
        if not factor > 0:
            raise ImporterError(f"tensor {one!r} holds a scale of {factor}; --method lossless keeps it")
        numbers = checkpoint.scales(of_scales, _SCALES)
        return Grouped(
            codes=unpacked(checkpoint.read(of_codes)),
            code_dtype=CODES,
            group_size=_COLUMNS,
            bits=4,
            scale=_divided(numbers, factor) if divides else _multiplied(numbers, factor),
            supergroup=(rows, scales.shape[1]),
        )

    return CodedWeight(
        name=name,
        shape=(rows, columns),
        dtype="bf16" if divides else checkpoint.dtype,
        form=_FORM,
        arrays={
            of_codes: {"stream": "codes"},
            of_scales: {"stream": "scale_codes"},
            one: None if divides else {"stream": "scale_steps"},
        },
        stored=stored,
    )


def _multiplied(scales: Elements, factor: np.float32) -> GroupValues:
    return GroupValues(scales, _SCALES, steps=np.array([[factor]], np.float32), steps_dtype="f32")


def _divided(scales: Elements, factor: np.float32) -> GroupValues:
    """What restores code * (scale / factor), rounded to binary32 twice and then to bfloat16."""
    values = small_float_values(_SCALES)
    with overflow_allowed():
        quotients, step = values / factor, np.float32(1) / factor
        multiplied = step * values
    there = np.unique(scales)
    if np.isfinite(step) and np.array_equal(_restored(quotients[there]), _restored(multiplied[there])):
        return _multiplied(scales, step)
    levels = np.zeros(len(values), np.float32)
    levels[there] = quotients[there]
    one = np.ones((1, 1), np.float32)
    return GroupValues(scales, "u8", steps=one, steps_dtype="f32", levels=levels)


def _restored(scales: Float32) -> Elements:
    """The bits of all codes with these scales, in bfloat16."""
    with overflow_allowed():
        return narrow(small_float_values(CODES)[:, None] * scales, "bf16")


FAMILY = Nvfp4()
