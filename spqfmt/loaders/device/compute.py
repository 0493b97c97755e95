"""y = x W^T where the codes of W are lent by the pipeline. Everything is given to the stream that computes."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn.functional import linear

from spqfmt.kernels.device import MAX_TOKENS, DeviceKernels, Matrix
from spqfmt.kernels.torch_arrays import TORCH_DTYPES
from spqfmt.loaders.device.pieces import WeightPiece
from spqfmt.loaders.device.seam import Device, Memory, Queue, Work
from spqfmt.loaders.device.sides import DeviceSides
from spqfmt.models.treatments import quantize_tokens
from spqfmt.records import TensorRecord
from spqfmt.residency.parts import channels
from spqfmt.residency.workspace import rows_at_once
from spqfmt.schemes.codes import by_columns

TILE_WEIGHTS = 1 << 23
"""Weights that are dequantized at a time for many tokens."""
_FLOAT32_BYTES = 4

Lend = Callable[[WeightPiece], AbstractContextManager[Memory]]


@dataclass(frozen=True)
class Products:
    """What products need beside the tensor: kernels, a device, lent pieces, and scratch memory for dequantized rows."""

    device: Device
    kernels: DeviceKernels
    lend: Lend
    workspace: Memory

    def multiply(
        self,
        x: torch.Tensor,
        pieces: tuple[WeightPiece, ...],
        sides: DeviceSides,
        *,
        bias: torch.Tensor | None,
        int8_activations: bool | None,
    ) -> torch.Tensor:
        """Tokens `x` [n, columns] (float32, bfloat16, float16) times the matrix: [n, rows] in x's dtype.

        With `int8_activations`, where the codes are the uniform scheme's, tokens are rounded to int8, a scale each.
        """
        dtype, matrix = x.dtype, sides.matrix
        scale: torch.Tensor | None = None
        if sides.input_order is not None:
            x = x.index_select(1, sides.input_order)
        if int8_activations and sides.integer is not None:
            matrix = sides.integer
            x, scale = _rounded(x, sides.column)
        if len(x) == 0:
            y = x.new_zeros(0, pieces[0].record.matrix_shape[0])
        elif matrix is None:
            y = self._dense(x, pieces)
        elif matrix.by_columns:
            y = self._by_columns(x, pieces, matrix)
        elif len(x) <= MAX_TOKENS:
            y = self._few(x, pieces, matrix)
        else:
            y = self._many(x, pieces, matrix)
        if scale is not None:
            y = y * scale
        if sides.output_order is not None:
            y = y.index_select(1, sides.output_order)
        if bias is not None:
            y = y + bias
        return y.to(dtype)

    def multiply_transposed(
        self, y: torch.Tensor, pieces: tuple[WeightPiece, ...], sides: DeviceSides
    ) -> torch.Tensor:
        """`y` [n, rows] times the matrix, not transposed, in tiles of decoded weights: [n, columns], float32."""
        matrix = sides.matrix
        n_columns = pieces[0].record.matrix_shape[1]
        if sides.output_order is not None:
            y = torch.empty_like(y).index_copy_(1, sides.output_order.long(), y)
        x = torch.zeros(len(y), n_columns, dtype=torch.float32, device=y.device)

        def add_columns(piece: WeightPiece, codes: Memory, run: range) -> None:
            assert matrix is not None
            x[:, run.start : run.stop] = y.float() @ self._column_tile(piece, codes, matrix, run)

        def add_rows(piece: WeightPiece, codes: Memory, run: range) -> None:
            x.add_(y[:, run.start : run.stop] @ self._row_tile(piece, codes, matrix, rows=run, dtype=y.dtype))

        if matrix is not None and matrix.by_columns:
            self._each(pieces, y.shape[1] * _FLOAT32_BYTES, add_columns)
            orders = (matrix.order, sides.input_order)
        else:
            self._each(pieces, n_columns * y.dtype.itemsize, add_rows)
            orders = (None, sides.input_order)
        for order in orders:
            if order is not None:
                x = torch.empty_like(x).index_copy_(1, order.long(), x)
        return x

    def values(self, pieces: tuple[WeightPiece, ...], sides: DeviceSides, dtype: torch.dtype) -> torch.Tensor:
        """The matrix, [rows, columns] of `dtype`, in memory of its own."""
        matrix = sides.matrix
        n_rows, n_columns = pieces[0].record.matrix_shape
        out = torch.empty(n_rows, n_columns, dtype=dtype, device=self.device.torch_device)
        row = None if sides.output_order is None else torch.argsort(sides.output_order)

        def copy_columns(piece: WeightPiece, codes: Memory, run: range) -> None:
            assert matrix is not None
            at = torch.arange(run.start, run.stop, device=out.device)
            for order in (matrix.order, sides.input_order):
                at = at if order is None else order.index_select(0, at)
            out.index_copy_(1, at.long(), self._column_tile(piece, codes, matrix, run).to(dtype))

        def copy_rows(piece: WeightPiece, codes: Memory, run: range) -> None:
            tile = self._row_tile(piece, codes, matrix, rows=run, dtype=dtype)
            if sides.input_order is not None:
                tile = torch.empty_like(tile).index_copy_(1, sides.input_order.long(), tile)
            if row is None:
                out[run.start : run.stop] = tile
            else:
                out.index_copy_(0, row[run.start : run.stop], tile)

        if matrix is not None and matrix.by_columns:
            self._each(pieces, n_rows * _FLOAT32_BYTES, copy_columns)
        else:
            self._each(pieces, n_columns * dtype.itemsize, copy_rows)
        return out

    def _few(self, x: torch.Tensor, pieces: tuple[WeightPiece, ...], matrix: Matrix) -> torch.Tensor:
        """The product straight from codes; float32."""
        x = x.contiguous()
        y = torch.empty(len(x), matrix.shape[0], dtype=torch.float32, device=x.device)

        def product(piece: WeightPiece, codes: Memory, rows: range) -> None:
            self.kernels.multiply(x, codes.tensor, matrix, rows=rows, y=y)

        self._each(pieces, None, product)
        return y

    def _many(self, x: torch.Tensor, pieces: tuple[WeightPiece, ...], matrix: Matrix) -> torch.Tensor:
        """torch's product with one tile of dequantized rows after the other; in x's dtype."""
        n_rows, n_columns = matrix.shape
        y = x.new_empty(len(x), n_rows)

        def product(piece: WeightPiece, codes: Memory, rows: range) -> None:
            y[:, rows.start : rows.stop] = linear(
                x, self._row_tile(piece, codes, matrix, rows=rows, dtype=x.dtype)
            )

        self._each(pieces, n_columns * x.dtype.itemsize, product)
        return y

    def _by_columns(self, x: torch.Tensor, pieces: tuple[WeightPiece, ...], matrix: Matrix) -> torch.Tensor:
        """Sums over runs of columns; float32."""
        n_rows, _ = matrix.shape
        tokens = x.float() if matrix.order is None else x.float().index_select(1, matrix.order)
        y = torch.zeros(len(x), n_rows, dtype=torch.float32, device=x.device)

        def product(piece: WeightPiece, codes: Memory, run: range) -> None:
            tile = self._column_tile(piece, codes, matrix, run)
            y.addmm_(tokens[:, run.start : run.stop], tile.t())

        self._each(pieces, n_rows * _FLOAT32_BYTES, product)
        return y

    def _dense(self, x: torch.Tensor, pieces: tuple[WeightPiece, ...]) -> torch.Tensor:
        """The product with stored floats, in x's dtype."""
        n_rows, n_columns = pieces[0].record.matrix_shape
        y = x.new_empty(len(x), n_rows)

        def product(piece: WeightPiece, values: Memory, rows: range) -> None:
            y[:, rows.start : rows.stop] = linear(
                x, self._row_tile(piece, values, None, rows=rows, dtype=x.dtype)
            )

        self._each(pieces, n_columns * x.dtype.itemsize, product)
        return y

    def _each(
        self,
        pieces: tuple[WeightPiece, ...],
        channel_bytes: int | None,
        product: Callable[[WeightPiece, Memory, range], None],
    ) -> None:
        """Give `product` piece by piece to the device, in tiles of channels of so many bytes as the workspace holds."""
        for piece in pieces:
            n_channels = piece.stop - piece.first
            step = (
                n_channels
                if channel_bytes is None
                else rows_at_once(1, channel_bytes, self.workspace.n_bytes)
            )
            with self.lend(piece) as stored:
                for first in range(piece.first, piece.stop, step):
                    run = range(first, min(first + step, piece.stop))
                    amount = piece.decoded_bytes * len(run) // n_channels
                    work = Work(f"compute {piece.name}", (stored,), (self.workspace,), {"compute": amount})
                    self.device.enqueue(Queue.COMPUTE, work, partial(product, piece, stored, run))

    def _row_tile(
        self, piece: WeightPiece, codes: Memory, matrix: Matrix | None, rows: range, dtype: torch.dtype
    ) -> torch.Tensor:
        """Stored rows, [rows, columns] of `dtype`: in the workspace, or for dense ones of that dtype where they are."""
        n_columns = piece.record.matrix_shape[1]
        shape = len(rows), n_columns
        if matrix is None:
            weights = codes.tensor.view(TORCH_DTYPES[piece.dtype]).view(-1, n_columns)
            tile = weights[rows.start - piece.first : rows.stop - piece.first]
            return tile if tile.dtype == dtype else self._tile(shape, dtype).copy_(tile)
        tile = self._tile(shape, dtype)
        self.kernels.dequantize(
            codes.tensor, matrix, rows, tile, first=(rows.start - piece.first) * n_columns
        )
        return tile

    def _column_tile(self, piece: WeightPiece, codes: Memory, matrix: Matrix, run: range) -> torch.Tensor:
        """Stored columns, float32 [rows, columns], in the workspace."""
        n_rows = matrix.shape[0]
        tile = self._tile((n_rows, len(run)), torch.float32)
        self.kernels.dequantize(codes.tensor, matrix, run, tile, first=(run.start - piece.first) * n_rows)
        return tile

    def _tile(self, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
        n_bytes = shape[0] * shape[1] * dtype.itemsize
        return self.workspace.tensor[:n_bytes].view(dtype).view(shape)


def device_workspace_bytes(record: TensorRecord, dtype: torch.dtype) -> int:
    """Room for a tile of a matrix in the model's dtype, and for the least one in float32."""
    n_channels, width = channels(record)
    itemsize = _FLOAT32_BYTES if by_columns(record) else dtype.itemsize
    rows = min(n_channels, rows_at_once(width, itemsize, TILE_WEIGHTS * itemsize))
    return width * max(rows * itemsize, _FLOAT32_BYTES * min(n_channels, rows_at_once(width, itemsize, 0)))


def _rounded(x: torch.Tensor, column: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs times column scales as integers -127 to 127, float32, and the scale of each token."""
    codes, scale, _ = quantize_tokens(x.float() if column is None else x.float() * column)
    return codes.float(), scale
