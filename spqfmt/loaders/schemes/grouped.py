"""Grouped matrices: by rows, or by columns, whose products are summed up; numbers of groups on a device."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from spqfmt.codecs.base import Bytes
from spqfmt.codecs.elements import Elements
from spqfmt.codecs.threads import n_threads
from spqfmt.kernels.dequantize import dequantize_grouped
from spqfmt.kernels.device.matrix import DeviceGroupValues, GroupScales, Scales
from spqfmt.kernels.multiply import CodeMatrix, Groups
from spqfmt.loaders.schemes.base import Form, HostMatrix, Lend
from spqfmt.loaders.schemes.matrix import PackedMatrix, as_tokens, checked_ids
from spqfmt.loaders.schemes.unpacked import outliers_of, unpacked
from spqfmt.records import TensorRecord
from spqfmt.residency.parts import Part
from spqfmt.schemes.base import Float32, parameter_int
from spqfmt.schemes.codes import by_columns, reorders_rows
from spqfmt.schemes.group_numbers import DIRECT, GroupedSides
from spqfmt.schemes.grouped import dequantize


class GroupedMatrix(PackedMatrix[GroupedSides]):
    """A grouped matrix that is stored by rows."""

    def code_matrix(self) -> CodeMatrix:
        """Make the native matrix of codes with numbers of groups."""
        sides = self._sides
        scale = sides.group_numbers("scale")
        assert scale is not None
        groups = Groups(
            sides.group_size, scale, sides.group_numbers("zero_point"), sides.group_numbers("minimum")
        )
        return CodeMatrix(
            self.record.matrix_shape,
            self._parts[0].dtype,
            outliers=sides.outliers,
            permutation=sides.permutation,
            order=sides.order,
            groups=groups,
        )

    def fill(self, part: Part, codes: Bytes, first: int, rows: slice, out: Elements, name: str) -> None:
        """Dequantize rows by the native kernel."""
        scale, zero_point, minimum = (
            self._sides.group_values(kind, rows.start, rows.stop) for kind in DIRECT
        )
        assert scale is not None
        dequantize_grouped(
            codes,
            part.dtype,
            self._sides.group_size,
            scale=scale,
            out=out,
            out_dtype=name,
            zero_point=zero_point,
            minimum=minimum,
            first=first * self._n_columns,
            n_threads=n_threads(),
        )


class GroupedColumns:
    """A grouped matrix that is stored by columns. Every product and every row needs all parts, one after the other."""

    def __init__(self, parts: tuple[Part, ...], sides: GroupedSides, whole: Bytes | None) -> None:
        self._parts, self._sides, self._whole = parts, sides, whole
        self._shape = sides.record.matrix_shape
        self._permutation = None if sides.permutation is None else torch.from_numpy(sides.permutation)

    @property
    def n_bytes(self) -> int:
        """Memory of the sides: all that is held beside codes."""
        return self._sides.n_bytes

    def multiply_whole(
        self, x: torch.Tensor, bias: nn.Parameter | None, *, int8_activations: bool
    ) -> torch.Tensor | None:
        """Return None: a product needs scratch memory."""
        return None

    def multiply(
        self,
        x: torch.Tensor,
        bias: nn.Parameter | None,
        lend: Lend,
        workspace: Bytes,
        *,
        int8_activations: bool,
    ) -> torch.Tensor:
        """Sums over parts of columns, in float32."""
        tokens = as_tokens(x, self._shape[1])
        tokens = tokens.float() if self._permutation is None else tokens[:, self._permutation].float()
        y = torch.zeros(len(tokens), self._shape[0])
        for columns, matrix in self._columns(lend):
            y += tokens[:, columns] @ matrix.t()
        y = y if bias is None else y + bias
        return y.to(x.dtype).reshape(*x.shape[:-1], self._shape[0])

    def look_up(self, ids: torch.Tensor, lend: Lend, workspace: Bytes, dtype: torch.dtype) -> torch.Tensor:
        """Look rows up, as `HostMatrix.look_up` says; each takes all parts."""
        wanted = torch.from_numpy(checked_ids(ids, self._sides.record))
        return self._gathered(lend, len(wanted), dtype, lambda matrix: matrix[wanted])

    def values(self, lend: Lend, workspace: Bytes, dtype: torch.dtype) -> torch.Tensor:
        """Decode the matrix, as `HostMatrix.values` says."""
        return self._gathered(lend, self._shape[0], dtype, lambda matrix: matrix)

    def _gathered(
        self, lend: Lend, n_rows: int, dtype: torch.dtype, rows: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """Some rows of all columns, [n_rows, columns] of `dtype`."""
        out = torch.empty(n_rows, self._shape[1], dtype=dtype)
        for columns, matrix in self._columns(lend):
            at = columns if self._permutation is None else self._permutation[columns]
            out[:, at] = rows(matrix).to(dtype)
        return out

    def _columns(self, lend: Lend) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The parts: numbers of stored columns, and their weights, float32 [rows, its columns]."""
        begin = 0
        for part in self._parts:
            if self._whole is not None:
                codes = self._whole[begin : begin + part.decoded_bytes]
                begin += part.decoded_bytes
                columns, matrix = dequantize_columns(part, self._sides, codes)
            else:
                with lend(part) as view:
                    columns, matrix = dequantize_columns(part, self._sides, view.bytes)
            yield torch.from_numpy(columns), torch.from_numpy(matrix)


def dequantize_columns(part: Part, sides: GroupedSides, codes: Bytes) -> tuple[NDArray[np.int64], Float32]:
    """The numbers of a part's columns, and their weights, float32 [rows, its columns]."""
    n_rows, n_columns = part.record.matrix_shape
    channels = np.arange(part.first, part.stop)
    columns = channels if sides.order is None else sides.order[channels]
    stored = unpacked(part, codes).reshape(-1, n_rows).T
    of_group = columns // sides.group_size
    values = [sides.group_values(kind, 0, n_rows) for kind in DIRECT]
    # One column to a group: each has the parameters of its own.
    scale, zero_point, minimum = (None if value is None else value[:, of_group] for value in values)
    assert scale is not None
    matrix = dequantize(stored, 1, scale, zero_point=zero_point, minimum=minimum)
    if sides.outliers is not None:
        rows, at, values_there = outliers_of(sides.outliers, 0, n_rows)
        place = np.full(n_columns, -1, np.int64)
        place[columns] = np.arange(columns.size)
        inside = place[at] >= 0
        matrix[rows[inside], place[at[inside]]] = values_there[inside]
    return columns, matrix


class GroupedOnDevice:
    """Numbers of groups as they are held, codes of a second level one a byte."""

    def forms(self, record: TensorRecord) -> Mapping[str, Form]:
        """Return the forms by kind, with steps and zeros of the second level."""
        rows, columns = record.matrix_shape
        groups = -(-columns // parameter_int(record, "group_size", 1))
        forms: dict[str, Form] = {}
        for kind, (direct, _) in DIRECT.items():
            found = record.by_role.get(direct) or record.by_role.get(f"{kind}_codes")
            if found is None:
                continue
            if reorders_rows(record):
                forms[kind] = ("f32", (rows, groups))
                continue
            forms[kind] = ({"u4": "u8", "u2": "u8"}.get(found.dtype, found.dtype), (rows, groups))
            for part in ("steps", "zeros"):
                stream = record.by_role.get(f"{kind}_{part}")
                if stream is not None:
                    per_row, per_group = _supergroup(record, rows, groups)
                    forms[f"{kind}_{part}"] = (stream.dtype, (-(-rows // per_row), -(-groups // per_group)))
        return forms

    def arrays(self, sides: GroupedSides) -> Mapping[str, Elements]:
        """Return the numbers of groups by the names that `forms` gives them."""
        arrays: dict[str, Elements] = {}
        for kind, (direct, _) in DIRECT.items():
            for role in (kind, direct, f"{kind}_codes"):
                if role in sides.groups:
                    arrays[kind] = sides.groups[role]
            for part in ("steps", "zeros"):
                if f"{kind}_{part}" in sides.groups:
                    arrays[f"{kind}_{part}"] = sides.groups[f"{kind}_{part}"]
        return arrays

    def scales(self, record: TensorRecord, tensors: Mapping[str, torch.Tensor]) -> Scales:
        """Put the numbers of groups together for the device kernels."""
        scale, zero_point, minimum = (_group_values(record, tensors, kind) for kind in DIRECT)
        assert scale is not None
        return GroupScales(parameter_int(record, "group_size", 1), scale, zero_point, minimum)


def _supergroup(record: TensorRecord, rows: int, groups: int) -> tuple[int, int]:
    found = record.parameters["supergroup"]
    assert isinstance(found, dict)
    # A tile may be larger than the matrix; the kernels count in int32.
    return min(int(found["rows"]), rows), min(int(found["groups"]), groups)


def _group_values(
    record: TensorRecord, tensors: Mapping[str, torch.Tensor], kind: str
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


class GroupedProducts:
    """The `LoaderScheme` of grouped tensors."""

    name = "grouped"
    multiplies_integers = False
    device = GroupedOnDevice()

    def matrix(self, parts: tuple[Part, ...], sides: GroupedSides, whole: Bytes | None) -> HostMatrix:
        """Make the matrix by rows or by columns, as it is stored."""
        if by_columns(sides.record):
            return GroupedColumns(parts, sides, whole)
        return GroupedMatrix(parts, sides, whole)


PRODUCTS = GroupedProducts()
