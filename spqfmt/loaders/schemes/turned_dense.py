"""Dense matrices whose stored rows are inputs, as gpt-oss and Llama 4 store their experts."""

from collections.abc import Iterator

import torch
from torch import nn

from spqfmt.codecs.base import Bytes
from spqfmt.codecs.elements import CARRIERS
from spqfmt.kernels.torch_arrays import to_torch
from spqfmt.loaders.schemes.base import Lend, WholeProduct
from spqfmt.loaders.schemes.matrix import as_tokens
from spqfmt.residency.parts import Part
from spqfmt.schemes.sides import Sides


class TurnedDense:
    """A matrix [rows, columns] whose values are stored as [columns, rows], by columns that are inputs.

    Products are summed up part by part in float32, whole or not, so that they are the same wherever the parts are.
    """

    def __init__(self, parts: tuple[Part, ...], sides: Sides, whole: Bytes | None) -> None:
        """`whole`: the bytes of all parts one after the other, where they are decoded in memory; else None."""
        self._parts, self._sides, self._whole = parts, sides, whole
        self._n_columns, self._n_rows = sides.record.shape

    @property
    def n_bytes(self) -> int:
        """Memory of the sides: all that is held beside values."""
        return self._sides.n_bytes

    @property
    def whole_product(self) -> WholeProduct | None:
        """None: torch multiplies floats."""
        return None

    def multiply_whole(
        self, x: torch.Tensor, bias: nn.Parameter | None, *, int8_activations: bool | None
    ) -> torch.Tensor | None:
        """Return None: `multiply` needs no more where the values are in memory."""
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
        """Multiply by the inputs of one part after the other, as `HostMatrix.multiply` says."""
        tokens = as_tokens(x, self._n_columns)
        y = torch.zeros(len(tokens), self._n_rows)
        for part, values in self._lent(lend):
            y += tokens[:, part.first : part.stop].float() @ values.float()
            del values
        y = y if bias is None else y + bias
        return y.to(x.dtype).reshape(*x.shape[:-1], self._n_rows)

    def multiply_transposed(self, y: torch.Tensor, lend: Lend, workspace: Bytes) -> torch.Tensor:
        """Multiply by the inputs of one part after the other, as `HostMatrix.multiply_transposed` says."""
        tokens = as_tokens(y, self._n_rows)
        x = tokens.new_empty(len(tokens), self._n_columns)
        for part, values in self._lent(lend):
            x[:, part.first : part.stop] = tokens @ values.to(tokens.dtype).t()
            del values
        return x.to(y.dtype).reshape(*y.shape[:-1], self._n_columns)

    def look_up(self, ids: torch.Tensor, lend: Lend, workspace: Bytes, dtype: torch.dtype) -> torch.Tensor:
        """Look rows up, as `HostMatrix.look_up` says; each takes all parts."""
        return self.values(lend, workspace, dtype)[ids]

    def values(self, lend: Lend, workspace: Bytes, dtype: torch.dtype) -> torch.Tensor:
        """Decode the matrix, as `HostMatrix.values` says."""
        out = torch.empty(self._n_rows, self._n_columns, dtype=dtype)
        for part, values in self._lent(lend):
            out[:, part.first : part.stop] = values.t()
            del values
        return out

    def _lent(self, lend: Lend) -> Iterator[tuple[Part, torch.Tensor]]:
        """The parts, and their values [inputs of the part, rows]."""
        begin = 0
        for part in self._parts:
            if self._whole is not None:
                yield part, self._of(part, self._whole[begin : begin + part.decoded_bytes])
                begin += part.decoded_bytes
                continue
            with lend(part) as view:
                yield part, self._of(part, view.bytes)

    def _of(self, part: Part, values: Bytes) -> torch.Tensor:
        shape = (part.stop - part.first, self._n_rows)
        return to_torch(values.view(CARRIERS[part.dtype]), part.dtype, shape)
