"""Stored tensors as the even grids that other formats know: whole codes, a scale and a zero point for each group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from spqfmt.container.fetch import StreamFetch
from spqfmt.errors import EncodeError
from spqfmt.exporters.base import EvenGrid
from spqfmt.importers._layout import role_of
from spqfmt.reading.origin_arrays import matrix_elements
from spqfmt.reading.restored import JoinedTensor, RestoredTensor
from spqfmt.records import FLOATS
from spqfmt.schemes.base import Float32, float_from_bits, parameter_int
from spqfmt.schemes.group_numbers import lines_of, n_lines, read_values
from spqfmt.schemes.registry import scheme_of
from spqfmt.schemes.uniform import read_scale
from spqfmt.wire import DTYPES, SMALL_FLOATS

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class StoredWeight(RestoredTensor):
    """A tensor of a file, with what exporters of codes ask of it (`ExportWeight`)."""

    @property
    def role(self) -> str:
        """Its role by its name; a stack of matrices with codes is of layers."""
        if len(self.shape) > 2 and self.has_codes:
            return "linear"
        return role_of(self.name, self.shape, is_float=self.dtype in FLOATS)

    @property
    def has_codes(self) -> bool:
        """Whether it is quantized."""
        record = self.record
        return record.tied_to is None and (record.is_named or scheme_of(record.scheme).is_quantized)

    @property
    def rounds_inputs(self) -> bool:
        """Whether inputs are rounded as FORMAT.md section 6 says."""
        return self.record.activation_quantization is not None

    @property
    def is_transposed(self) -> bool:
        """Whether it is stored as a matrix whose rows are its columns."""
        return self.record.transposed

    @property
    def why_no_grid(self) -> str:
        """What of its record is no even grid of groups of one row."""
        record = self.record
        roles = record.by_role
        if record.is_named:
            return f"blocks of {record.scheme} are bytes without codes"
        if len(record.shape) != 2:
            return "it is no matrix of one layer"
        if record.view is not None:
            return "its groups do not lie along the inputs"
        if record.activation_clamp is not None:
            return "the inputs of its layer are clamped"
        for role, what in _MISFITS.items():
            if role in roles:
                return what
        dtype = roles["codes"].dtype
        if dtype in SMALL_FLOATS:
            return "its codes are floats"
        if dtype.startswith("i") and {"minimums", "minimum_codes"} & roles.keys():
            return "its codes have signs, and minimums"
        return ""

    def grid(self) -> EvenGrid:
        """The numbers of its groups, those of signed codes moved with them."""
        record = self.record
        rows, columns = record.matrix_shape
        dtype = record.by_role["codes"].dtype
        fetch = StreamFetch(self.reader, record)
        offset = 1 << (DTYPES[dtype].bits - 1) if dtype.startswith("i") else 0
        bits = DTYPES[dtype].bits
        if record.scheme == "uniform":
            step = float_from_bits(record.parameters["step"], "step")
            found = read_scale(record, fetch, "row_scales", first=0, stop=None)
            row = np.full(rows, step, np.float32) if found is None else step * found
            return EvenGrid(bits, columns, self._finite(row[:, None]), np.full((rows, 1), offset, np.int16))
        size = parameter_int(record, "group_size", 1)
        scale, zero, minimum = (
            self._of_rows(fetch, kind, size) for kind in ("scale", "zero_point", "minimum")
        )
        assert scale is not None
        named = parameter_int(record, "bits")
        return EvenGrid(
            # The parameter is what a method says; codes are checked against it where it matters.
            bits=named if not offset and 2 <= named < bits else bits,
            group_size=min(size, columns),
            scale=self._finite(scale),
            zero=self._whole(scale, zero, minimum, offset),
            minimum=None if minimum is None else self._finite(minimum),
            column_groups=self._column_groups(fetch, size, columns),
        )

    def codes(self) -> NDArray[np.uint8]:
        """The codes from 0 on, in the order of the columns."""
        record = self.record
        dtype = record.by_role["codes"].dtype
        found = matrix_elements(self.reader, record, "codes").reshape(record.matrix_shape)
        codes: NDArray[np.uint8] = found.view(np.uint8)
        if dtype.startswith("i"):
            codes = codes + np.uint8(1 << (DTYPES[dtype].bits - 1))
        self.progress.advance(record.source_bytes, self.name)
        return codes

    def _of_rows(self, fetch: StreamFetch, kind: str, size: int) -> Float32 | None:
        """A kind of number, float32 [rows, groups]."""
        record = self.record
        values = read_values(record, fetch, kind, group_size=size, lines=range(n_lines(record)))
        lines = lines_of(record, range(record.matrix_shape[0]))
        if values is None or isinstance(lines, range):
            return values
        return values[lines.astype(np.int64)]

    def _finite(self, numbers: Float32) -> Float32:
        if not np.isfinite(numbers).all():
            raise EncodeError(f"tensor {self.name!r}: numbers of its groups are NaN or infinite")
        return numbers

    def _whole(
        self, scale: Float32, zero: Float32 | None, minimum: Float32 | None, offset: int
    ) -> NDArray[np.int16]:
        """The zero points in terms of codes from 0 on."""
        if zero is None:
            return np.full(scale.shape, 0 if minimum is not None else offset, np.int16)
        if not (np.abs(zero) <= 1 << 12).all() or not (zero == np.rint(zero)).all():
            raise EncodeError(
                f"tensor {self.name!r}: its zero points are no whole numbers, which no form of export holds; "
                "--as dense writes plain weights"
            )
        return zero.astype(np.int16) + np.int16(offset)

    def _column_groups(self, fetch: StreamFetch, size: int, columns: int) -> NDArray[np.int32] | None:
        """The group of each column, where they are not in order."""
        if "permutation" not in self.record.by_role or size >= columns:
            return None
        self.reader.check_elements(self.record)
        groups = np.empty(columns, np.int32)
        groups[fetch("permutation").astype(np.int64)] = np.arange(columns) // size
        return None if (groups == np.arange(columns) // size).all() else groups


@dataclass(frozen=True)
class JoinedWeight(JoinedTensor):
    """A matrix whose rows a file has apart (`ExportWeight`): it goes out as values, for codes may lie along rows."""

    role = "other"
    has_codes = False
    rounds_inputs = False
    is_transposed = False
    why_no_grid = ""

    def grid(self) -> EvenGrid:
        """Refuse: it is written as values."""
        raise EncodeError(f"tensor {self.name!r}: its rows lie apart; --as dense writes plain weights")

    def codes(self) -> NDArray[np.uint8]:
        """Refuse as `grid` does."""
        self.grid()
        return np.empty(0, np.uint8)


_MISFITS = {
    "outlier_values": "it has outliers",
    "column_scales": "it has scales of columns",
    "levels": "its codes are numbers of levels",
}
