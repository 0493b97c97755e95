"""Uniform matrices: by rows, or by columns that were turned to rows; row and column scales on a device."""

from collections.abc import Mapping

import numpy as np
import torch

from spqfmt.codecs.base import Bytes
from spqfmt.codecs.elements import Elements
from spqfmt.kernels.device.matrix import Scales, UniformScales
from spqfmt.loaders.schemes.base import Form, HostMatrix
from spqfmt.loaders.schemes.integer_matrix import IntegerMatrix
from spqfmt.loaders.schemes.turned import TurnedMatrix, in_stored_order, pieces_of
from spqfmt.records import TensorRecord
from spqfmt.residency.parts import Part
from spqfmt.schemes.uniform import UniformSides


class UniformOnDevice:
    """Scales, and the outliers in units of the columns' scales, for products of integer activations."""

    def forms(self, record: TensorRecord) -> Mapping[str, Form]:
        """Return the shapes of row and column scales, float32."""
        rows, columns = record.matrix_shape
        forms: dict[str, Form] = {"row": ("f32", (rows,))}
        if "column_scales" in record.by_role:
            forms["column"] = ("f32", (columns,))
            if "outlier_values" in record.by_role:
                forms["integer_values"] = ("f32", (record.by_role["outlier_values"].n,))
        return forms

    def arrays(self, sides: UniformSides) -> Mapping[str, Elements]:
        """Return the scales as the sides have them."""
        arrays: dict[str, Elements] = {"row": sides.row}
        if sides.column is not None:
            arrays["column"] = sides.column
            if sides.outliers is not None:
                values, scale = sides.outliers.values, sides.column[sides.outliers.columns]
                # A column without a scale takes no input, so nothing there counts.
                in_units = np.divide(values, scale, out=np.zeros_like(values), where=scale != 0)
                arrays["integer_values"] = in_units
        return arrays

    def scales(self, record: TensorRecord, tensors: Mapping[str, torch.Tensor]) -> Scales:
        """Put the scales of rows and columns together for the device kernels."""
        return UniformScales(tensors["row"], tensors.get("column"))


class UniformProducts:
    """The `LoaderScheme` of uniform tensors."""

    name = "uniform"
    multiplies_integers = True
    device = UniformOnDevice()

    def matrix(self, parts: tuple[Part, ...], sides: UniformSides, whole: Bytes | None) -> HostMatrix:
        """Make the matrix by rows; where these were columns, each part is one for itself."""
        if parts[0].is_turned:
            stored = in_stored_order(sides)
            return TurnedMatrix(stored, pieces_of(parts, stored), whole)
        return IntegerMatrix(parts, sides, whole)


PRODUCTS = UniformProducts()
