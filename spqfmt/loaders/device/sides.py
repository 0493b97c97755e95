"""Scales, orders and outliers of packed tensors on a device, in the forms that the kernels take."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import torch

from spqfmt.codecs.elements import CARRIERS, Elements
from spqfmt.kernels.device import DeviceOutliers, Matrix, UniformScales
from spqfmt.kernels.torch_arrays import TORCH_DTYPES, to_torch
from spqfmt.loaders.device.fused import fused_codes
from spqfmt.loaders.device.seam import Memory
from spqfmt.loaders.schemes.base import Form
from spqfmt.loaders.schemes.registry import device_form
from spqfmt.records import TensorRecord
from spqfmt.residency.groups import aligned
from spqfmt.residency.parts import weights_stream
from spqfmt.schemes.codes import by_columns, reorders_rows
from spqfmt.schemes.sides import Sides


@dataclass(frozen=True, eq=False)
class DeviceSides:
    """What one tensor needs on the device beside its codes. `matrix` is None for a dense one.

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
    """Device memory of what comes with a matrix, from the index alone."""
    return sum(aligned(_n_bytes(form)) for form in _forms(record).values())


def change_bytes(record: TensorRecord) -> int:
    """The same of what its outliers change, which products straight from compressed parts want besides."""
    return sum(aligned(_n_bytes(form)) for form in _changes(record).values())


def put_sides(sides: Sides, memory: Memory, *, with_changes: bool) -> DeviceSides:
    """Copy one tensor's into `memory`, before any stream works with it; changes are made of decoded codes, later."""
    arrays = _arrays(sides)
    tensors, found = sides_in(sides.record, memory, with_changes=with_changes)
    for name, (dtype, shape) in _forms(sides.record).items():
        tensors[name].copy_(to_torch(arrays[name], dtype, shape))
    return found


def sides_in(
    record: TensorRecord, memory: Memory, *, with_changes: bool
) -> tuple[dict[str, torch.Tensor], DeviceSides]:
    """One tensor's as they lie in `memory` (device_side_bytes, and change_bytes where they are wanted).

    With them the tensors that they are made of, by name.
    """
    tensors: dict[str, torch.Tensor] = {}
    at = 0
    for name, (dtype, shape) in (_forms(record) | (_changes(record) if with_changes else {})).items():
        room = memory.part(at, _n_bytes((dtype, shape))).tensor
        tensors[name] = room.view(TORCH_DTYPES[dtype]).view(shape)
        at += aligned(_n_bytes((dtype, shape)))
    return tensors, _assemble(record, tensors)


def _n_bytes(form: Form) -> int:
    return prod(form[1]) * CARRIERS[form[0]].itemsize


def _forms(record: TensorRecord) -> dict[str, Form]:
    """What a tensor has on a device."""
    rows, columns = record.matrix_shape
    forms: dict[str, Form] = {}
    if "channel_order" in record.by_role:
        forms["order"] = ("i32", (columns if by_columns(record) else rows,))
        if by_columns(record):
            forms["places"] = forms["order"]
    if "permutation" in record.by_role:
        forms["permutation"] = ("i32", (columns,))
    if "outlier_values" in record.by_role:
        n = record.by_role["outlier_values"].n
        forms |= {"row_begin": ("i32", (rows + 1,)), "columns": ("i32", (n,)), "values": ("f32", (n,))}
    return {**forms, **device_form(record).forms(record)}


def _changes(record: TensorRecord) -> dict[str, Form]:
    outliers = record.by_role.get("outlier_values")
    return {} if outliers is None or fused_codes(record) is None else {"changes": ("f32", (outliers.n,))}


def _arrays(sides: Sides) -> dict[str, Elements]:
    """The values of `_forms`, as carriers."""
    record = sides.record
    arrays: dict[str, Elements] = {}
    if sides.order is not None:
        # By rows it is asked for the other way round: where each output comes from.
        back = np.argsort(sides.order).astype(np.int32)
        arrays["order"] = back if reorders_rows(record) else sides.order.astype(np.int32)
        arrays["places"] = back
    if sides.permutation is not None:
        arrays["permutation"] = sides.permutation.astype(np.int32)
    if sides.outliers is not None:
        begin, columns, values = sides.outliers
        arrays |= {
            "row_begin": begin.astype(np.int32), "columns": columns.astype(np.int32), "values": values
        }  # fmt: skip
    return {**arrays, **device_form(record).arrays(sides)}


def _assemble(record: TensorRecord, tensors: dict[str, torch.Tensor]) -> DeviceSides:
    get: Callable[[str], torch.Tensor | None] = tensors.get
    order, column = get("order"), get("column")
    input_order = get("permutation")
    output_order = order if reorders_rows(record) else None
    scales = device_form(record).scales(record, tensors)
    if scales is None:
        return DeviceSides(
            matrix=None, column=None, input_order=input_order, output_order=output_order, integer=None
        )
    outliers = None
    if "values" in tensors:
        outliers = DeviceOutliers(
            tensors["row_begin"], tensors["columns"], tensors["values"], tensors.get("changes")
        )
    rows, columns = record.matrix_shape
    matrix = Matrix(
        shape=(rows, columns),
        code_dtype=weights_stream(record).dtype,
        scales=scales,
        outliers=outliers,
        by_columns=by_columns(record),
        order=order if by_columns(record) else None,
        places=get("places"),
    )
    integer = None
    if isinstance(scales, UniformScales):
        integer = matrix
        if column is not None:
            in_units = None if outliers is None else replace(outliers, values=tensors["integer_values"])
            integer = replace(matrix, scales=UniformScales(scales.row), outliers=in_units)
    return DeviceSides(
        matrix=matrix, column=column, input_order=input_order, output_order=output_order, integer=integer
    )
