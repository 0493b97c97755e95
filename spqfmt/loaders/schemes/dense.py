"""Dense matrices: products with the stored floats, where they are if they have the activations' dtype."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from spqfmt.codecs.base import Bytes
from spqfmt.codecs.elements import CARRIERS, Elements
from spqfmt.container.stacks import MatrixRecord
from spqfmt.kernels.device.matrix import Scales
from spqfmt.kernels.torch_arrays import to_torch
from spqfmt.loaders.schemes.base import Form, HostMatrix
from spqfmt.loaders.schemes.matrix import NAMES, PackedMatrix
from spqfmt.loaders.schemes.turned_dense import TurnedDense
from spqfmt.records import TensorRecord
from spqfmt.residency.parts import Part
from spqfmt.schemes.sides import Sides


class DenseMatrix(PackedMatrix[Sides]):
    """A matrix whose floats are stored as they are."""

    def __init__(self, parts: tuple[Part, ...], sides: Sides, whole: Bytes | None) -> None:
        super().__init__(parts, sides, whole)
        self._weight: torch.Tensor | None = None
        if whole is not None:
            stored = whole.view(CARRIERS[parts[0].dtype])
            self._weight = to_torch(stored, parts[0].dtype, sides.record.matrix_shape)

    def multiply_whole(
        self, x: torch.Tensor, bias: nn.Parameter | None, *, int8_activations: bool | None
    ) -> torch.Tensor | None:
        """torch's product, for activations of the stored dtype."""
        if self._weight is None or self._weight.dtype != x.dtype:
            return None
        return nn.functional.linear(x, self._weight, bias)

    def rows(
        self, part: Part, codes: Bytes, first: int, stop: int, dtype: torch.dtype, workspace: Bytes
    ) -> torch.Tensor:
        """Return rows of `codes` itself where they are of this dtype."""
        if part.dtype != NAMES.get(dtype):
            return super().rows(part, codes, first, stop=stop, dtype=dtype, workspace=workspace)
        return self._stored(part, codes)[first:stop]

    def fill(self, part: Part, codes: Bytes, first: int, rows: slice, out: Elements, name: str) -> None:
        """Convert the stored floats to `name`, by torch."""
        here = self._stored(part, codes)[first : first + len(out)]
        to_torch(out, name, out.shape).copy_(here)

    def some_rows(
        self, part: Part, codes: Bytes, rows: NDArray[np.int64], dtype: torch.dtype
    ) -> torch.Tensor:
        """Those that are asked for, copied."""
        values = codes.view(CARRIERS[part.dtype]).reshape(-1, self._n_columns)[rows - part.first]
        return to_torch(values, part.dtype, values.shape).to(dtype)

    def _stored(self, part: Part, codes: Bytes) -> torch.Tensor:
        shape = (part.stop - part.first, self._n_columns)
        return to_torch(codes.view(CARRIERS[part.dtype]), part.dtype, shape)


class DenseOnDevice:
    """The form of a dense tensor on a device, which needs no kernels."""

    def forms(self, record: TensorRecord) -> Mapping[str, Form]:
        """Return nothing: a dense tensor has no sides."""
        return {}

    def arrays(self, sides: Sides) -> Mapping[str, Elements]:
        """Return nothing: a dense tensor has no sides."""
        return {}

    def scales(self, record: TensorRecord, tensors: Mapping[str, torch.Tensor]) -> Scales | None:
        """Return None: floats have no scales."""
        return None


class DenseProducts:
    """The `LoaderScheme` of dense tensors."""

    name = "dense"
    multiplies_integers = False
    device = DenseOnDevice()

    def matrix(self, parts: tuple[Part, ...], sides: Sides, whole: Bytes | None) -> HostMatrix:
        """Make the matrix, which is stored by rows, or by inputs where it is one of a stack that is turned."""
        if isinstance(sides.record, MatrixRecord) and sides.record.turned:
            return TurnedDense(parts, sides, whole)
        return DenseMatrix(parts, sides, whole)


PRODUCTS = DenseProducts()
