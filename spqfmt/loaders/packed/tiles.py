"""Rows of a part as weights of torch's types: the plain way from codes to a product, and the way for many tokens.

Weights are those of FORMAT.md 5, rounded once to the wanted dtype, outliers in place.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spqfmt import wire
from spqfmt.codecs.base import Bytes
from spqfmt.codecs.elements import CARRIERS, Elements, from_planes
from spqfmt.codecs.threads import n_threads
from spqfmt.kernels.dequantize import dequantize_grouped, dequantize_uniform
from spqfmt.kernels.multiply import OutlierRows
from spqfmt.kernels.torch_arrays import to_torch
from spqfmt.residency.parts import Part
from spqfmt.residency.sides import Sides
from spqfmt.schemes.base import Float32
from spqfmt.schemes.floats import narrow
from spqfmt.schemes.grouped import dequantize as grouped_formula

NAMES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}


def dequantize_rows(
    part: Part, sides: Sides, codes: Bytes, first: int, stop: int, dtype: torch.dtype, workspace: Bytes
) -> torch.Tensor:
    """Rows `first` to `stop` of a part stored by rows, counted from its begin: [stop - first, columns] of `dtype`.

    In `workspace`, or for dense weights of that dtype in `codes` itself: valid as long as those are.
    """
    n_columns = part.record.matrix_shape[1]
    shape = (stop - first, n_columns)
    if part.record.scheme == "dense":
        stored = codes.view(CARRIERS[part.dtype])[first * n_columns : stop * n_columns]
        weights = to_torch(stored, part.dtype, shape)
        if weights.dtype == dtype:
            return weights
    name = NAMES[dtype]
    out = workspace[: shape[0] * n_columns * dtype.itemsize].view(CARRIERS[name]).reshape(shape)
    if part.record.scheme == "dense":
        return to_torch(out, name, shape).copy_(weights)
    rows = slice(part.first + first, part.first + stop)
    if part.record.scheme == "uniform":
        assert sides.row is not None
        dequantize_uniform(
            codes,
            part.dtype,
            sides.row[rows],
            sides.column,
            out,
            name,
            first=first * n_columns,
            n_threads=n_threads(),
        )
    else:
        scale = sides.group_values("scale", rows.start, rows.stop)
        assert scale is not None
        dequantize_grouped(
            codes,
            part.dtype,
            sides.group_size,
            scale,
            out,
            name,
            zero_point=sides.group_values("zero_point", rows.start, rows.stop),
            minimum=sides.group_values("minimum", rows.start, rows.stop),
            first=first * n_columns,
            n_threads=n_threads(),
        )
    if sides.outliers is not None:
        at, columns, values = outliers_of(sides.outliers, rows.start, rows.stop)
        out[at, columns] = narrow(values, name)
    return to_torch(out, name, shape)


def outliers_of(outliers: OutlierRows, first: int, stop: int) -> tuple[NDArray[np.int64], Any, Float32]:
    """Rows counted from `first`, columns and values of the outliers of rows `first` to `stop`."""
    begin = outliers.row_begin[first : stop + 1]
    here = slice(begin[0], begin[-1])
    return np.repeat(np.arange(stop - first), np.diff(begin)), outliers.columns[here], outliers.values[here]


def dequantize_columns(part: Part, sides: Sides, codes: Bytes) -> tuple[NDArray[np.int64], Float32]:
    """A part of groups stored by columns: the numbers of its columns, and the weights, float32 [rows, its columns]."""
    record = part.record
    n_rows = record.matrix_shape[0]
    channels = np.arange(part.first, part.stop)
    columns = channels if sides.order is None else sides.order[channels]
    stored = unpacked(part, codes).reshape(-1, n_rows).T
    of_group = columns // sides.group_size
    values = [sides.group_values(kind, 0, n_rows) for kind in ("scale", "zero_point", "minimum")]
    # One column to a group: each has the parameters of its own.
    each = [None if value is None else value[:, of_group] for value in values]
    assert each[0] is not None
    matrix = grouped_formula(stored, 1, each[0], each[1], each[2])
    if sides.outliers is not None:
        rows, at, values_there = outliers_of(sides.outliers, 0, n_rows)
        place = np.full(record.matrix_shape[1], -1, np.int64)
        place[columns] = np.arange(columns.size)
        inside = place[at] >= 0
        matrix[rows[inside], place[at[inside]]] = values_there[inside]
    return columns, matrix


def unpacked(part: Part, codes: Bytes) -> Elements:
    """All codes of a part, one a byte."""
    if wire.DTYPES[part.dtype].bits == 8:
        return codes.view(CARRIERS[part.dtype])
    out = np.empty(part.n_weights, CARRIERS[part.dtype])
    from_planes(codes, part.dtype, part.n_weights, out)
    return out
