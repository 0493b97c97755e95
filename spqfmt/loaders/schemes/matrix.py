"""y = x W^T from the parts of a packed matrix that is stored by rows. All of it on the CPU, without gradients."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from spqfmt.codecs.base import Bytes
from spqfmt.codecs.elements import CARRIERS, Elements
from spqfmt.codecs.threads import n_threads
from spqfmt.kernels.dequantize import FLOATS
from spqfmt.kernels.multiply import NO_BIAS, CodeMatrix, Floats
from spqfmt.kernels.narrow import NarrowCodes
from spqfmt.kernels.torch_arrays import to_torch
from spqfmt.loaders.schemes.base import Lend, WholeProduct
from spqfmt.loaders.schemes.unpacked import outliers_of
from spqfmt.records import TensorRecord
from spqfmt.residency.parts import Part
from spqfmt.residency.workspace import rows_at_once
from spqfmt.schemes.floats import narrow
from spqfmt.schemes.sides import Sides

NAMES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
"""What packed weights compute in."""
TYPES = {dtype: FLOATS[name][0] for dtype, name in NAMES.items()}
"""The number of such a type for the native kernels."""
FEW_TOKENS = 32
"""Up to here the native product is faster than dequantizing to the activations' dtype and torch's product."""

SidesT = TypeVar("SidesT", bound=Sides)


class PackedMatrix(ABC, Generic[SidesT]):
    """What computes with one tensor's codes. What does not change from call to call is made once.

    A scheme says in `fill` what its codes mean; all else works with that, and faster where it has more to offer.
    """

    def __init__(self, parts: tuple[Part, ...], sides: SidesT, whole: Bytes | None) -> None:
        """`whole`: the bytes of all parts one after the other, where they are decoded in memory; else None."""
        self._parts = parts
        self._stops = np.array([part.stop for part in parts])
        self._sides = sides
        self._n_rows, self._n_columns = sides.record.matrix_shape
        self._order = None if sides.order is None else torch.from_numpy(sides.order)
        self._permutation = None if sides.permutation is None else torch.from_numpy(sides.permutation)
        self._whole = whole
        self._held: Bytes | NarrowCodes | None = whole
        self._matrix = self.code_matrix()

    def take_narrow(self, narrowed: Sequence[Bytes]) -> None:
        """Take the narrow form of each part, as `TakesNarrow` says."""
        runs = zip(narrowed, (part.stop - part.first for part in self._parts), strict=True)
        self._held = NarrowCodes(list(runs), self._n_columns)

    @abstractmethod
    def fill(self, part: Part, codes: Bytes, first: int, rows: slice, out: Elements, name: str) -> None:
        """Fill `out` [rows, columns], carrier of `name`, with weights rounded once; outliers are put in place later.

        `rows` are stored rows of the matrix; the part's, `codes`, have them from its row `first` on.
        """

    def code_matrix(self) -> CodeMatrix | None:
        """The native product for few tokens; None: there is none."""
        return None

    def some_rows(
        self, part: Part, codes: Bytes, rows: NDArray[np.int64], dtype: torch.dtype
    ) -> torch.Tensor | None:
        """Stored rows of the matrix out of a part, [n, columns] of `dtype`; None: they come one by one, by `rows`."""
        return None

    @property
    def record(self) -> TensorRecord:
        """The record of the tensor."""
        return self._sides.record

    @property
    def n_bytes(self) -> int:
        """Memory of the sides: all that is held beside codes."""
        return self._sides.n_bytes

    @property
    def whole_product(self) -> WholeProduct | None:
        """The native product, where all codes are in memory."""
        if self._held is None or self._matrix is None:
            return None
        return WholeProduct(self._matrix, self._held)

    def multiply_whole(
        self, x: torch.Tensor, bias: nn.Parameter | None, *, int8_activations: bool | None
    ) -> torch.Tensor | None:
        """Multiply by codes that lie in memory as a whole, as `HostMatrix.multiply_whole` says."""
        product = self.whole_product
        return None if product is None else multiply_few(product, x, bias, rounds=int8_activations is None)

    def multiply_to_floats(self, tokens: torch.Tensor, lend: Lend) -> torch.Tensor:
        """Multiply few tokens [n, columns] of a dtype of NAMES by the one part that this is: float32 [n, rows]."""
        assert self._matrix is not None
        tokens = tokens.contiguous()
        y = torch.empty(len(tokens), self._n_rows)
        there = Floats(tokens.data_ptr(), TYPES[tokens.dtype])
        held = iter([self._held]) if self._held is not None else (codes for _, codes in self._lent(lend))
        for codes in held:
            self._matrix.multiply_to_floats(codes, *there, len(tokens), y.data_ptr(), n_threads())
        return y

    def multiply(
        self,
        x: torch.Tensor,
        bias: nn.Parameter | None,
        lend: Lend,
        workspace: Bytes,
        *,
        int8_activations: bool | None,
    ) -> torch.Tensor:
        """Multiply by one part after the other, as `HostMatrix.multiply` says."""
        tokens = as_tokens(x, self._n_columns)
        y = self.product(tokens, bias, lend, workspace, int8_activations=int8_activations)
        return y.to(x.dtype).reshape(*x.shape[:-1], self._n_rows)

    def product(
        self,
        tokens: torch.Tensor,
        bias: nn.Parameter | None,
        lend: Lend,
        workspace: Bytes,
        *,
        int8_activations: bool | None,
    ) -> torch.Tensor:
        """`multiply` for tokens [n, columns] of a dtype of NAMES: [n, rows]."""
        if len(tokens) <= FEW_TOKENS and self._matrix is not None:
            return self._multiply_few(tokens, bias, lend, rounds=int8_activations is None)
        return self._multiply_many(tokens, bias, lend, workspace)

    def multiply_transposed(self, y: torch.Tensor, lend: Lend, workspace: Bytes) -> torch.Tensor:
        """Multiply tile by tile of decoded rows, as `HostMatrix.multiply_transposed` says."""
        tokens = as_tokens(y, self._n_rows)
        x: torch.Tensor | None = None
        step = rows_at_once(self._n_columns, tokens.itemsize, workspace.size)
        for part, codes in self._lent(lend):
            for first in range(0, part.stop - part.first, step):
                stop = min(first + step, part.stop - part.first)
                stored = slice(part.first + first, part.first + stop)
                outputs = stored if self._order is None else self._order[stored]
                tile = self.rows(part, codes, first, stop=stop, dtype=tokens.dtype, workspace=workspace)
                product = tokens[:, outputs] @ tile
                del tile
                # One tile is mostly all.
                x = product if x is None else x.float().add_(product)
            del codes
        assert x is not None
        if self._permutation is not None:
            x = torch.empty_like(x).index_copy_(1, self._permutation.long(), x)
        return x.to(y.dtype).reshape(*y.shape[:-1], self._n_columns)

    def look_up(self, ids: torch.Tensor, lend: Lend, workspace: Bytes, dtype: torch.dtype) -> torch.Tensor:
        """Look rows up, as `HostMatrix.look_up` says."""
        wanted = checked_ids(ids, self.record)
        out = torch.empty(len(wanted), self._n_columns, dtype=dtype)
        if self._sides.order is not None:
            stored_at = np.empty(self._n_rows, np.int64)
            stored_at[self._sides.order] = np.arange(self._n_rows)
            wanted = stored_at[wanted]
        numbers = np.searchsorted(self._stops, wanted, side="right")
        for number in sorted(set(numbers.tolist())):
            part, places = self._parts[number], np.flatnonzero(numbers == number)
            with lend(part) as view:
                self._look_up_in(
                    part,
                    view.bytes,
                    wanted[places],
                    places=torch.from_numpy(places),
                    workspace=workspace,
                    out=out,
                )
        if self._permutation is None:
            return out
        restored = torch.empty_like(out)
        restored[:, self._permutation] = out
        return restored

    def _look_up_in(
        self,
        part: Part,
        codes: Bytes,
        rows: NDArray[np.int64],
        places: torch.Tensor,
        workspace: Bytes,
        out: torch.Tensor,
    ) -> None:
        found = self.some_rows(part, codes, rows, out.dtype)
        if found is not None:
            out[places] = found
            return
        for place, row in zip(places, (rows - part.first).tolist(), strict=True):
            out[place] = self.rows(part, codes, row, stop=row + 1, dtype=out.dtype, workspace=workspace)[0]

    def values(self, lend: Lend, workspace: Bytes, dtype: torch.dtype) -> torch.Tensor:
        """Decode the matrix, as `HostMatrix.values` says."""
        out = torch.empty(self._n_rows, self._n_columns, dtype=dtype)
        step = rows_at_once(self._n_columns, dtype.itemsize, workspace.size)
        for part, codes in self._lent(lend):
            for first in range(0, part.stop - part.first, step):
                stop = min(first + step, part.stop - part.first)
                rows = slice(part.first + first, part.first + stop)
                tile = self.rows(part, codes, first, stop=stop, dtype=dtype, workspace=workspace)
                if self._permutation is not None:
                    tile = torch.empty_like(tile).index_copy_(1, self._permutation.long(), tile)
                out[rows if self._order is None else self._order[rows]] = tile
                del tile
            del codes
        return out

    def rows(
        self, part: Part, codes: Bytes, first: int, stop: int, dtype: torch.dtype, workspace: Bytes
    ) -> torch.Tensor:
        """Rows `first` to `stop` of a part, counted from its begin: [stop - first, columns] of `dtype`.

        Weights are those of FORMAT.md 5, rounded once, outliers in place. They are valid as long as `workspace` and
        `codes` are.
        """
        shape = (stop - first, self._n_columns)
        name = NAMES[dtype]
        out = workspace[: shape[0] * shape[1] * dtype.itemsize].view(CARRIERS[name]).reshape(shape)
        rows = slice(part.first + first, part.first + stop)
        self.fill(part, codes, first, rows=rows, out=out, name=name)
        if self._sides.outliers is not None:
            at, columns, values = outliers_of(self._sides.outliers, rows.start, rows.stop)
            out[at, columns] = narrow(values, name)
        return to_torch(out, name, shape)

    def _lent(self, lend: Lend) -> Iterator[tuple[Part, Bytes]]:
        begin = 0
        for part in self._parts:
            if self._whole is not None:
                yield part, self._whole[begin : begin + part.decoded_bytes]
                begin += part.decoded_bytes
                continue
            with lend(part) as view:
                yield part, view.bytes

    def _multiply_few(
        self, x: torch.Tensor, bias: nn.Parameter | None, lend: Lend, *, rounds: bool
    ) -> torch.Tensor:
        assert self._matrix is not None
        y = x.new_empty(len(x), self._n_rows)
        there, added, n = Floats(x.data_ptr(), TYPES[x.dtype]), floats(bias), n_threads()
        if self._held is not None:
            self._matrix.multiply(
                self._held, 0, self._n_rows, *there, len(x), y.data_ptr(), *added, n, rounds
            )
            return y
        for part, codes in self._lent(lend):
            n_rows = part.stop - part.first
            self._matrix.multiply(codes, part.first, n_rows, *there, len(x), y.data_ptr(), *added, n, rounds)
        return y

    def _multiply_many(
        self, x: torch.Tensor, bias: nn.Parameter | None, lend: Lend, workspace: Bytes
    ) -> torch.Tensor:
        """torch's product with one tile of dequantized rows after the other."""
        if self._permutation is not None:
            x = x[:, self._permutation]
        y = x.new_empty(len(x), self._n_rows)
        added = None if bias is None else bias.to(x.dtype)
        # A dense part of x's dtype is used where it is; any other goes through the workspace.
        step = rows_at_once(self._n_columns, x.dtype.itemsize, workspace.size)
        for part, codes in self._lent(lend):
            for first in range(0, part.stop - part.first, step):
                stop = min(first + step, part.stop - part.first)
                stored = slice(part.first + first, part.first + stop)
                outputs = stored if self._order is None else self._order[stored]
                tile = self.rows(part, codes, first, stop=stop, dtype=x.dtype, workspace=workspace)
                product = nn.functional.linear(x, tile, None if added is None else added[outputs])
                del tile
                if stop - first == self._n_rows and self._order is None:
                    return product
                y[:, outputs] = product
            del codes
        return y


def as_tokens(x: torch.Tensor, n_columns: int) -> torch.Tensor:
    """Contiguous [n, columns] of a dtype of NAMES."""
    tokens = x.reshape(-1, n_columns).contiguous()
    return tokens if tokens.dtype in TYPES else tokens.float()


def multiply_few(
    product: WholeProduct, x: torch.Tensor, bias: nn.Parameter | None, *, rounds: bool
) -> torch.Tensor | None:
    """Multiply `x` [..., columns] by all codes, as `HostMatrix.multiply_whole` says; None: too many, another dtype."""
    n_rows, n_columns = product.matrix.shape
    n_tokens = x.numel() // n_columns
    if n_tokens > FEW_TOKENS or x.dtype not in TYPES:
        return None
    x = x.contiguous()
    y = x.new_empty((*x.shape[:-1], n_rows))
    there = Floats(x.data_ptr(), TYPES[x.dtype])
    product.matrix.multiply(
        *(product.codes, 0, n_rows, *there, n_tokens, y.data_ptr()), *floats(bias), n_threads(), rounds
    )
    return y


def checked_ids(ids: torch.Tensor, record: TensorRecord) -> NDArray[np.int64]:
    """Return numbers of rows, int64. Raises IndexError for one that is not there."""
    n_rows = record.matrix_shape[0]
    wanted = ids.numpy().astype(np.int64)
    if wanted.size and not 0 <= wanted.min() <= wanted.max() < n_rows:
        wrong = wanted[(wanted < 0) | (wanted >= n_rows)].flat[0]
        raise IndexError(f"{record.name}: no row for id {wrong}; it has {n_rows} rows, 0 to {n_rows - 1}")
    return wanted


def floats(bias: nn.Parameter | None) -> Floats:
    """A bias for the native kernels."""
    return NO_BIAS if bias is None else Floats(bias.data_ptr(), TYPES[bias.dtype])
