"""Scales, orders and outliers of packed tensors on a device, in the forms that the kernels take."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import torch

from spqfmt.codecs.elements import CARRIERS, Elements
from spqfmt.kernels.device import DeviceGroupValues, DeviceOutliers, GroupScales, Matrix, UniformScales
from spqfmt.kernels.device.matrix import Scales
from spqfmt.kernels.torch_arrays import to_torch
from spqfmt.loaders.device.seam import Memory
from spqfmt.loaders.device.shipping import aligned
from spqfmt.records import TensorRecord
from spqfmt.residency.parts import by_columns, weights_stream
from spqfmt.residency.sides import Sides
from spqfmt.schemes.base import parameter_int
from spqfmt.schemes.group_numbers import DIRECT

_Form = tuple[str, tuple[int, ...]]  # dtype by its name in the format, shape


@dataclass(frozen=True, eq=False)
class DeviceSides:
    """One tensor's. `matrix` is None for a dense one.

    `input_order`: stored column -> column, where inputs are permuted. `output_order`: row -> stored row, where outputs
    are put back. `integer`: the matrix in units of its column scales, which go to the inputs instead: what products of
    integer activations want. None where there is no such.
    """

    matrix: Matrix | None
    column: torch.Tensor | None
    input_order: torch.Tensor | None
    output_order: torch.Tensor | None
    integer: Matrix | None


def device_side_bytes(record: TensorRecord) -> int:
    """Device memory that `put_sides` takes, from the index alone."""
    return sum(aligned(_n_bytes(form)) for form in _forms(record).values())


def put_sides(sides: Sides, memory: Memory) -> DeviceSides:
    """Copy one tensor's into `memory` (device_side_bytes), before any stream works with it."""
    record = sides.record
    arrays = _arrays(sides)
    tensors: dict[str, torch.Tensor] = {}
    at = 0
    for name, (dtype, shape) in _forms(record).items():
        source = to_torch(arrays[name], dtype, shape)
        room = memory.part(at, _n_bytes((dtype, shape))).tensor
        tensors[name] = room.view(source.dtype).view(shape).copy_(source)
        at += aligned(_n_bytes((dtype, shape)))
    return _assemble(record, tensors)


def _n_bytes(form: _Form) -> int:
    return prod(form[1]) * CARRIERS[form[0]].itemsize


def _carried(dtype: str) -> str:
    """Codes narrower than a byte are one a byte."""
    return {"u4": "u8", "u2": "u8"}.get(dtype, dtype)


def _reorders_rows(record: TensorRecord) -> bool:
    return "channel_order" in record.by_role and not by_columns(record)


def _forms(record: TensorRecord) -> dict[str, _Form]:
    """What a tensor has on a device."""
    rows, columns = record.matrix_shape
    forms: dict[str, _Form] = {}
    if "channel_order" in record.by_role:
        forms["order"] = ("i32", (columns if by_columns(record) else rows,))
        if by_columns(record):
            forms["places"] = forms["order"]
    if "permutation" in record.by_role:
        forms["permutation"] = ("i32", (columns,))
    if "outlier_values" in record.by_role:
        n = record.by_role["outlier_values"].n
        forms |= {"row_begin": ("i32", (rows + 1,)), "columns": ("i32", (n,)), "values": ("f32", (n,))}
    if record.scheme == "uniform":
        forms["row"] = ("f32", (rows,))
        if "column_scales" in record.by_role:
            forms["column"] = ("f32", (columns,))
            if "values" in forms:
                forms["integer_values"] = forms["values"]
    elif record.scheme == "grouped":
        forms |= _group_forms(record, rows, -(-columns // parameter_int(record, "group_size", 1)))
    return forms


def _group_forms(record: TensorRecord, rows: int, groups: int) -> dict[str, _Form]:
    forms: dict[str, _Form] = {}
    for kind, (direct, _) in DIRECT.items():
        found = record.by_role.get(direct) or record.by_role.get(f"{kind}_codes")
        if found is None:
            continue
        if _reorders_rows(record):
            forms[kind] = ("f32", (rows, groups))
            continue
        forms[kind] = (_carried(found.dtype), (rows, groups))
        for part in ("steps", "zeros"):
            stream = record.by_role.get(f"{kind}_{part}")
            if stream is not None:
                per_row, per_group = _supergroup(record, rows, groups)
                forms[f"{kind}_{part}"] = (stream.dtype, (-(-rows // per_row), -(-groups // per_group)))
    return forms


def _supergroup(record: TensorRecord, rows: int, groups: int) -> tuple[int, int]:
    found = record.parameters["supergroup"]
    assert isinstance(found, dict)
    # A tile may be larger than the matrix; the kernels count in int32.
    return min(int(found["rows"]), rows), min(int(found["groups"]), groups)


def _arrays(sides: Sides) -> dict[str, Elements]:
    """The values of `_forms`, as carriers."""
    record = sides.record
    arrays: dict[str, Elements] = {}
    if sides.order is not None:
        # By rows it is asked for the other way round: where each output comes from.
        back = np.argsort(sides.order).astype(np.int32)
        arrays["order"] = back if _reorders_rows(record) else sides.order.astype(np.int32)
        arrays["places"] = back
    if sides.permutation is not None:
        arrays["permutation"] = sides.permutation.astype(np.int32)
    if sides.row is not None:
        arrays["row"] = sides.row
    if sides.column is not None:
        arrays["column"] = sides.column
    if sides.outliers is not None:
        begin, columns, values = sides.outliers
        arrays |= {
            "row_begin": begin.astype(np.int32), "columns": columns.astype(np.int32), "values": values
        }  # fmt: skip
        if sides.column is not None:
            scale = sides.column[columns]
            # A column without a scale takes no input, so nothing there counts.
            arrays["integer_values"] = np.divide(values, scale, out=np.zeros_like(values), where=scale != 0)
    for kind, (direct, _) in DIRECT.items():
        for role, name in ((kind, kind), (direct, kind), (f"{kind}_codes", kind)):
            if role in sides.groups:
                arrays[name] = sides.groups[role]
        for part in ("steps", "zeros"):
            if f"{kind}_{part}" in sides.groups:
                arrays[f"{kind}_{part}"] = sides.groups[f"{kind}_{part}"]
    return arrays


def _assemble(record: TensorRecord, tensors: dict[str, torch.Tensor]) -> DeviceSides:
    get: Callable[[str], torch.Tensor | None] = tensors.get
    order, column = get("order"), get("column")
    input_order = get("permutation")
    output_order = order if _reorders_rows(record) else None
    if record.scheme == "dense":
        return DeviceSides(None, None, input_order, output_order, None)
    outliers = None
    if "values" in tensors:
        outliers = DeviceOutliers(tensors["row_begin"], tensors["columns"], tensors["values"])
    scales: Scales
    if record.scheme == "uniform":
        scales = UniformScales(tensors["row"], column)
    else:
        scale = _group_values(record, tensors, "scale")
        assert scale is not None
        zero_point, minimum = (_group_values(record, tensors, kind) for kind in ("zero_point", "minimum"))
        scales = GroupScales(parameter_int(record, "group_size", 1), scale, zero_point, minimum)
    rows, columns = record.matrix_shape
    matrix = Matrix(
        (rows, columns),
        weights_stream(record).dtype,
        scales,
        outliers,
        by_columns(record),
        order if by_columns(record) else None,
        get("places"),
    )
    integer = None
    if isinstance(scales, UniformScales):
        integer = matrix
        if column is not None:
            in_units = None if outliers is None else replace(outliers, values=tensors["integer_values"])
            integer = replace(matrix, scales=UniformScales(scales.row), outliers=in_units)
    return DeviceSides(matrix, column, input_order, output_order, integer)


def _group_values(
    record: TensorRecord, tensors: dict[str, torch.Tensor], kind: str
) -> DeviceGroupValues | None:
    if kind not in tensors:
        return None
    values, steps = tensors[kind], tensors.get(f"{kind}_steps")
    if steps is None:
        return DeviceGroupValues(values)
    rows, groups = values.shape
    return DeviceGroupValues(
        values, steps, tensors.get(f"{kind}_zeros"), _supergroup(record, int(rows), int(groups))
    )
