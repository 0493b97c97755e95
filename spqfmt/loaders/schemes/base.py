"""What a scheme brings for loaders. The scheme itself, with its sides, is a PackedScheme of spqfmt.schemes."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from torch import nn

from spqfmt.codecs.base import Bytes
from spqfmt.codecs.elements import Elements
from spqfmt.kernels.device.matrix import Scales
from spqfmt.kernels.multiply import CodeMatrix
from spqfmt.kernels.narrow import NarrowCodes, PieceCodes
from spqfmt.records import TensorRecord
from spqfmt.residency.parts import Part


class Lent(Protocol):
    """The decoded bytes of a part, for a while."""

    @property
    def bytes(self) -> Bytes:
        """What is lent, uint8, for reading only."""
        ...


Lend: TypeAlias = Callable[[Part], AbstractContextManager[Lent]]


class WholeProduct(NamedTuple):
    """The native product with codes that lie in memory as a whole."""

    matrix: CodeMatrix
    codes: Bytes | NarrowCodes | PieceCodes


class HostMatrix(Protocol):
    """One tensor's matrix on the CPU, without gradients. `lend` gives its parts; `workspace` is the caller's alone."""

    @property
    def n_bytes(self) -> int:
        """Memory of the sides: all that is held beside codes."""
        ...

    @property
    def whole_product(self) -> WholeProduct | None:
        """What few tokens that are not rounded to int8 are multiplied by; None where that is no single native call."""
        ...

    def multiply_whole(
        self, x: torch.Tensor, bias: nn.Parameter | None, *, int8_activations: bool | None
    ) -> torch.Tensor | None:
        """Multiply as `multiply` does, without a part lent and without scratch memory; None where that cannot be."""
        ...

    def multiply(
        self,
        x: torch.Tensor,
        bias: nn.Parameter | None,
        lend: Lend,
        workspace: Bytes,
        *,
        int8_activations: bool | None,
    ) -> torch.Tensor:
        """Products of `x` [..., columns] with the matrix: [..., rows], in x's dtype.

        With `int8_activations`, where the scheme multiplies integers, tokens are rounded to int8 with a scale each.
        None: inputs of 16 bits may be rounded finely, by some neighbouring columns, where that is faster.
        """
        ...

    def multiply_transposed(self, y: torch.Tensor, lend: Lend, workspace: Bytes) -> torch.Tensor:
        """Products of `y` [..., rows] with the matrix, not transposed: [..., columns], in y's dtype.

        Weights are rounded to y's dtype; sums over tiles of rows are in float32.
        """
        ...

    def look_up(self, ids: torch.Tensor, lend: Lend, workspace: Bytes, dtype: torch.dtype) -> torch.Tensor:
        """Rows `ids` [n] of the matrix: [n, columns] of `dtype`. Raises IndexError for one that is not there."""
        ...

    def values(self, lend: Lend, workspace: Bytes, dtype: torch.dtype) -> torch.Tensor:
        """The matrix, [rows, columns] of `dtype`, in memory of its own."""
        ...


@runtime_checkable
class TakesNarrow(Protocol):
    """A HostMatrix that multiplies few tokens by narrow codes as they are; others get them decoded."""

    def take_narrow(self, narrowed: Sequence[Bytes]) -> None:
        """Take the narrow form of each part, which stays where it is."""
        ...


Form: TypeAlias = tuple[str, tuple[int, ...]]
"""What an array on a device is: dtype by its name in the format, and shape."""


class DeviceForm(Protocol):
    """A scheme's numbers in the forms that the kernels of a device take, but for orders and outliers."""

    def forms(self, record: TensorRecord) -> Mapping[str, Form]:
        """What a tensor has on a device by name, from the index alone."""
        ...

    def arrays(self, sides: Any) -> Mapping[str, Elements]:
        """The values of `forms`, as carriers. `sides` are the scheme's own."""
        ...

    def scales(self, record: TensorRecord, tensors: Mapping[str, torch.Tensor]) -> Scales | None:
        """What codes mean to the kernels, from the `forms` there; None where the weights are stored as they are."""
        ...


class LoaderScheme(Protocol):
    """What a module of this folder offers under the name `PRODUCTS`. Stateless."""

    name: str
    """Name of the scheme in a file."""
    multiplies_integers: bool
    """Whether it has products of integer activations; those of others are rounded and multiplied as floats."""
    device: DeviceForm | None
    """None: a model on a device decodes such tensors whole."""

    def matrix(self, parts: tuple[Part, ...], sides: Any, whole: Bytes | None) -> HostMatrix:
        """Make what computes with a tensor on the host. `sides` are the scheme's own.

        `whole`: the bytes of all parts one after the other, where they are decoded in memory; else None.
        """
        ...
