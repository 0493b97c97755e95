"""A matrix as arguments of the kernels: pointers, sizes, and what a kernel is compiled for."""

from math import gcd
from typing import Any

import torch

from spqfmt.kernels.device.matrix import CODE_DTYPES, Matrix, UniformScales

NO_OFFSET, ZERO_POINT, MINIMUM = range(3)
TO = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""Numbers that `floats.store` knows dtypes by."""
_MOST_OF_A_UNIT = 8


def code_arguments(matrix: Matrix) -> dict[str, Any]:
    """How a matrix's codes are packed, as arguments of kernels."""
    bits, signed = CODE_DTYPES[matrix.code_dtype]
    return {"BITS": bits, "SIGNED": signed}


def scale_arguments(matrix: Matrix) -> dict[str, Any]:
    """The arguments of scales.weights_of; None for what the matrix does not have."""
    scales = matrix.scales
    arguments: dict[str, Any] = dict.fromkeys(
        ("row_scale", "column_scale", *_names("scale"), *_names("offset"), "levels")
    )
    arguments |= {"n_groups": 0, "n_tiles": 0}
    constants = dict.fromkeys(("GROUP_SIZE", "SUPER_ROWS", "SUPER_GROUPS", "GROUP_ROWS", "STACKED_ROWS"), 1)
    constants["OFFSET"] = NO_OFFSET
    if isinstance(scales, UniformScales):
        return arguments | constants | {"row_scale": scales.row, "column_scale": scales.column}
    offset = scales.zero_point or scales.minimum
    for name, values in (("scale", scales.scale), ("offset", offset)):
        if values is not None:
            given = (values.values, values.table, values.steps, values.zeros, values.minimums)
            arguments |= zip(_names(name), given, strict=True)
            if values.steps is not None:
                arguments["n_tiles"] = values.steps.shape[1]
                constants["SUPER_ROWS"], constants["SUPER_GROUPS"] = values.supergroup
    # beyond the matrix there is one group, or one tile: smaller numbers that mean the same, within int32
    constants["GROUP_SIZE"] = min(scales.group_size, matrix.shape[1])
    arguments["n_groups"] = scales.scale.values.shape[1]
    arguments["levels"] = scales.levels
    constants["STACKED_ROWS"] = scales.stacked_rows or matrix.shape[0]
    constants["GROUP_ROWS"] = min(scales.rows, constants["STACKED_ROWS"])
    constants["SUPER_ROWS"] = min(constants["SUPER_ROWS"], matrix.shape[0])
    constants["SUPER_GROUPS"] = min(constants["SUPER_GROUPS"], arguments["n_groups"])
    if offset is not None:
        constants["OFFSET"] = MINIMUM if scales.zero_point is None else ZERO_POINT
    return arguments | constants


def _names(name: str) -> tuple[str, ...]:
    return (name, *(f"{name}_{part}" for part in ("table", "steps", "zeros", "minimums")))


def unit_arguments(matrix: Matrix, first: int) -> dict[str, int]:
    """Codes of a unit, which share a group, and of a byte; for a matrix by rows from code number `first` on."""
    bits, _ = CODE_DTYPES[matrix.code_dtype]
    columns = matrix.shape[1]
    unit = _MOST_OF_A_UNIT
    if not isinstance(matrix.scales, UniformScales) and matrix.scales.group_size < columns:
        unit = gcd(unit, matrix.scales.group_size)
    whole_bytes = first * bits % 8 == 0 and columns * bits % 8 == 0
    per_byte = 8 // bits if whole_bytes and unit * bits % 8 == 0 else 1
    return {"UNIT": unit, "PER_BYTE": per_byte}
