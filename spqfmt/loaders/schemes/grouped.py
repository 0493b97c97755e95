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
from spqfmt.loaders.schemes.base import Form, HostMatrix, Lend, WholeProduct
from spqfmt.loaders.schemes.matrix import PackedMatrix, as_tokens, checked_ids
from spqfmt.loaders.schemes.unpacked import outliers_of, unpacked
from spqfmt.records import TensorRecord
from spqfmt.residency.parts import Part
from spqfmt.schemes.base import Float32, parameter_int
from spqfmt.schemes.codes import by_columns, reorders_rows
from spqfmt.schemes.group_numbers import DIRECT, GroupedSides, group_rows_of, n_lines
from spqfmt.schemes.grouped import dequantize
from spqfmt.wire import DTYPES, SMALL_FLOATS

_SECOND = ("steps", "zeros", "minimums")
_BYTES = dict.fromkeys(("u2", "u4", *SMALL_FLOATS), "u8")


class GroupedMatrix(PackedMatrix[GroupedSides]):
    """A grouped matrix that is stored by rows."""

    def code_matrix(self) -> CodeMatrix:
        """Make the native matrix of codes with numbers of groups."""
        sides = self._sides
        scale = sides.group_numbers("scale")
        assert scale is not None
        rows, stacked_rows = sides.group_rows
        groups = Groups(
            sides.group_size,
            scale,
            zero_point=sides.group_numbers("zero_point"),
            minimum=sides.group_numbers("minimum"),
            rows=rows,
            stacked_rows=stacked_rows,
        )
        return CodeMatrix(
            self.record.matrix_shape,
            self._parts[0].dtype,
            outliers=sides.outliers,
            permutation=sides.permutation,
            order=sides.order,
            groups=groups,
            values=sides.values_of_codes,
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
            values=self._sides.values_of_codes,
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

    @property
    def whole_product(self) -> WholeProduct | None:
        """None: columns are multiplied part by part."""
        return None

    def multiply_whole(
        self, x: torch.Tensor, bias: nn.Parameter | None, *, int8_activations: bool | None
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
        int8_activations: bool | None,
    ) -> torch.Tensor:
        """Sums over parts of columns, in float32."""
        tokens = as_tokens(x, self._shape[1])
        tokens = tokens.float() if self._permutation is None else tokens[:, self._permutation].float()
        y = torch.zeros(len(tokens), self._shape[0])
        for columns, matrix in self._columns(lend):
            y += tokens[:, columns] @ matrix.t()
        y = y if bias is None else y + bias
        return y.to(x.dtype).reshape(*x.shape[:-1], self._shape[0])

    def multiply_transposed(self, y: torch.Tensor, lend: Lend, workspace: Bytes) -> torch.Tensor:
        """Multiply by parts of columns, as `HostMatrix.multiply_transposed` says."""
        tokens = y.reshape(-1, self._shape[0]).float()
        x = self._gathered(lend, len(tokens), y.dtype, lambda matrix: tokens @ matrix)
        return x.reshape(*y.shape[:-1], self._shape[1])

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
    if sides.values_of_codes is not None:
        stored = sides.values_of_codes[stored]
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
    """Numbers of groups as they are held, codes of a second level one a byte, and what codes are numbers of."""

    def forms(self, record: TensorRecord) -> Mapping[str, Form]:
        """Return the forms by kind, with steps, zeros and minimums of the second level."""
        rows, columns = record.matrix_shape
        groups = -(-columns // parameter_int(record, "group_size", 1))
        forms: dict[str, Form] = {}
        dtype = record.by_role["codes"].dtype
        if dtype in SMALL_FLOATS or "levels" in record.by_role:
            forms["levels"] = ("f32", (1 << DTYPES[dtype].bits,))
        for kind, (direct, _) in DIRECT.items():
            found = record.by_role.get(direct) or record.by_role.get(f"{kind}_codes")
            if found is None:
                continue
            if reorders_rows(record):
                forms[kind] = ("f32", (rows, groups))
                continue
            lines = n_lines(record)
            forms[kind] = (_BYTES.get(found.dtype, found.dtype), (lines, groups))
            if found.dtype in SMALL_FLOATS or f"{kind}_levels" in record.by_role:
                forms[f"{kind}_table"] = ("f32", (256,))
            for part in _SECOND:
                stream = record.by_role.get(f"{kind}_{part}")
                if stream is not None:
                    per_line, per_group = _supergroup(record, lines, groups)
                    forms[f"{kind}_{part}"] = (stream.dtype, (-(-lines // per_line), -(-groups // per_group)))
        return forms

    def arrays(self, sides: GroupedSides) -> Mapping[str, Elements]:
        """Return the numbers of groups by the names that `forms` gives them."""
        arrays: dict[str, Elements] = {}
        if sides.values_of_codes is not None:
            arrays["levels"] = sides.values_of_codes.copy()  # torch takes no memory that cannot be written
        for kind in DIRECT:
            numbers = sides.group_numbers(kind)
            if numbers is None:
                continue
            second = (numbers.steps, numbers.zeros, numbers.minimums)
            given = (numbers.values, None if numbers.table is None else numbers.table.copy(), *second)
            names = (kind, f"{kind}_table", *(f"{kind}_{part}" for part in _SECOND))
            arrays |= {name: array for name, array in zip(names, given, strict=True) if array is not None}
        return arrays

    def scales(self, record: TensorRecord, tensors: Mapping[str, torch.Tensor]) -> Scales:
        """Put the numbers of groups together for the device kernels."""
        scale, zero_point, minimum = (_group_values(record, tensors, kind) for kind in DIRECT)
        assert scale is not None
        return GroupScales(
            parameter_int(record, "group_size", 1),
            scale,
            zero_point=zero_point,
            minimum=minimum,
            levels=tensors.get("levels"),
            rows=1 if reorders_rows(record) else group_rows_of(record),
            stacked_rows=record.stacked_rows,
        )


def _supergroup(record: TensorRecord, lines: int, groups: int) -> tuple[int, int]:
    found = record.parameters["supergroup"]
    assert isinstance(found, dict)
    # A tile may be larger than the matrix; the kernels count in int32.
    return min(int(found["rows"]), lines), min(int(found["groups"]), groups)


def _group_values(
    record: TensorRecord, tensors: Mapping[str, torch.Tensor], kind: str
) -> DeviceGroupValues | None:
    if kind not in tensors:
        return None
    values, table = tensors[kind], tensors.get(f"{kind}_table")
    steps, zeros, minimums = (tensors.get(f"{kind}_{part}") for part in _SECOND)
    if steps is None:
        return DeviceGroupValues(values, table=table)
    lines, groups = values.shape
    tile = _supergroup(record, int(lines), int(groups))
    return DeviceGroupValues(
        values, steps=steps, zeros=zeros, supergroup=tile, minimums=minimums, table=table
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
