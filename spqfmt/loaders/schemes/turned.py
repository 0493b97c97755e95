"""Tensors of the uniform scheme that are stored by columns: each part, once decoded, is a matrix of its own columns.

So their products are those of tensors stored by rows, part by part, with the inputs that each part's columns take.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from spqfmt.codecs.base import Bytes
from spqfmt.kernels.multiply import CodeMatrix, OutlierRows
from spqfmt.kernels.narrow import NarrowCodes, PieceCodes
from spqfmt.loaders.schemes.base import Lend, Lent, WholeProduct
from spqfmt.loaders.schemes.integer_matrix import IntegerMatrix
from spqfmt.loaders.schemes.matrix import FEW_TOKENS, as_tokens, multiply_few
from spqfmt.residency.parts import Part
from spqfmt.schemes.uniform import UniformSides


@dataclass(frozen=True)
class TurnedPiece:
    """A part as a tensor by itself: [rows, its columns], stored by rows. `columns`: which of x they take, int64."""

    stored: Part
    part: Part
    sides: UniformSides
    columns: NDArray[np.int64]

    def lend(self, lend: Lend) -> Lend:
        """`lend` for `part`, by what is stored."""

        def lent(part: Part) -> AbstractContextManager[Lent]:
            return lend(self.stored)

        return lent


def in_stored_order(sides: UniformSides) -> UniformSides:
    """The sides of a tensor that is stored by columns, in the order of these; `permutation`: stored column -> input."""
    order = np.arange(sides.record.matrix_shape[1]) if sides.order is None else sides.order
    return replace(
        sides,
        column=None if sides.column is None else sides.column[order],
        permutation=order if sides.permutation is None else sides.permutation[order],
    )


def pieces_of(parts: Sequence[Part], sides: UniformSides) -> tuple[TurnedPiece, ...]:
    """The parts of a tensor, all of them `is_turned`; its sides are `in_stored_order`. Pieces share their memory."""
    record = sides.record
    n_rows, n_columns = record.matrix_shape
    order = np.arange(n_columns) if sides.order is None else sides.order
    assert sides.permutation is not None
    pieces = []
    for part in parts:
        here = order[part.first : part.stop]
        own = replace(
            record,
            shape=(n_rows, here.size),
            transposed=False,
            parameters={**record.parameters, "orientation": "rows"},
        )
        inputs = sides.permutation[part.first : part.stop]
        own_sides = UniformSides(
            own,
            row=sides.row,
            column=None if sides.column is None else sides.column[part.first : part.stop],
            # The whole matrix takes all inputs, in another order; a piece is given its own.
            permutation=inputs if len(parts) == 1 else None,
            outliers=None if sides.outliers is None else _outliers_in(sides.outliers, here, n_columns),
        )
        pieces.append(
            TurnedPiece(
                part,
                Part(
                    record=own,
                    reader_number=part.reader_number,
                    chunks=part.chunks,
                    first=0,
                    stop=n_rows,
                    is_whole=True,
                ),
                own_sides,
                inputs,
            )
        )
    return tuple(pieces)


def _outliers_in(outliers: OutlierRows, columns: NDArray[np.int64], n_columns: int) -> OutlierRows:
    """Those in some columns, which are counted in that order from now on."""
    n_rows = outliers.row_begin.size - 1
    place = np.full(n_columns, -1, np.int64)
    place[columns] = np.arange(columns.size)
    rows, at = np.repeat(np.arange(n_rows), np.diff(outliers.row_begin)), place[outliers.columns]
    chosen = np.flatnonzero(at >= 0)
    chosen = chosen[np.lexsort((at[chosen], rows[chosen]))]
    begin = np.searchsorted(rows[chosen], np.arange(n_rows + 1)).astype(np.int64)
    return OutlierRows(begin, at[chosen].astype(np.uint32), outliers.values[chosen])


class TurnedMatrix:
    """A uniform matrix whose columns were turned to rows: an IntegerMatrix for each part.

    `sides` are `in_stored_order`, `pieces` those of the parts, `whole` as for an IntegerMatrix, with every part turned.
    """

    def __init__(self, sides: UniformSides, pieces: tuple[TurnedPiece, ...], whole: Bytes | None) -> None:
        self._sides = sides
        self._pieces = pieces
        self._matrices = []
        begin = 0
        for piece in pieces:
            end = begin + piece.part.decoded_bytes
            own = None if whole is None else whole[begin:end]
            self._matrices.append(IntegerMatrix((piece.part,), piece.sides, own))
            begin = end
        self._columns = [torch.from_numpy(piece.columns) for piece in pieces]
        self._n_rows, self._n_columns = sides.record.matrix_shape
        self._together: WholeProduct | None = None
        if whole is not None and len(pieces) > 1:
            stops = np.cumsum([piece.part.decoded_bytes for piece in pieces])
            self._take_together(np.split(whole, stops[:-1]))

    @property
    def n_bytes(self) -> int:
        """Memory of the sides of all pieces, which share their rows' scales."""
        # A permutation that the file has is counted by the sides; one that is an order of the file's columns is not.
        columns = sum(
            piece.columns.nbytes
            for piece in self._pieces
            if piece.sides.permutation is None or "permutation" not in piece.sides.record.by_role
        )
        row = self._pieces[0].sides.row
        return columns + row.nbytes + sum(piece.sides.n_bytes - row.nbytes for piece in self._pieces)

    @property
    def whole_product(self) -> WholeProduct | None:
        """The native product, where all codes are in memory."""
        return self._matrices[0].whole_product if len(self._matrices) == 1 else self._together

    def _take_together(self, codes: Sequence[Bytes | NarrowCodes]) -> None:
        """Multiply all pieces in one native call: 8-bit codes without outliers, whose places are of one order."""
        sides = self._sides
        if any(piece.part.dtype != "i8" for piece in self._pieces) or sides.outliers is not None:
            return
        matrix = CodeMatrix(
            sides.record.matrix_shape, "i8", row=sides.row, column=sides.column, permutation=sides.permutation
        )
        widths = (piece.columns.size for piece in self._pieces)
        self._together = WholeProduct(matrix, PieceCodes(list(zip(codes, widths, strict=True)), self._n_rows))

    def take_narrow(self, narrowed: Sequence[Bytes]) -> None:
        """Take the narrow form of each piece, as `TakesNarrow` says."""
        for matrix, codes in zip(self._matrices, narrowed, strict=True):
            matrix.take_narrow([codes])
        if len(self._pieces) > 1:
            runs = zip(narrowed, self._pieces, strict=True)
            self._take_together([NarrowCodes([(run, self._n_rows)], p.columns.size) for run, p in runs])

    def multiply_whole(
        self, x: torch.Tensor, bias: nn.Parameter | None, *, int8_activations: bool | None
    ) -> torch.Tensor | None:
        """Multiply codes that lie in memory, as `HostMatrix.multiply_whole` says."""
        if len(self._matrices) == 1:
            return self._matrices[0].multiply_whole(x, bias, int8_activations=int8_activations)
        if self._together is None or int8_activations:
            return None
        return multiply_few(self._together, x, bias, rounds=int8_activations is None)

    def multiply(
        self,
        x: torch.Tensor,
        bias: nn.Parameter | None,
        lend: Lend,
        workspace: Bytes,
        *,
        int8_activations: bool | None,
    ) -> torch.Tensor:
        """Multiply piece by piece, as `HostMatrix.multiply` says. Sums over several parts are in float32.

        Of few tokens they are those of `multiply_whole`, to the bit.
        """
        if len(self._matrices) == 1:
            lent = self._pieces[0].lend(lend)
            return self._matrices[0].multiply(x, bias, lent, workspace, int8_activations=int8_activations)
        tokens = as_tokens(x, self._n_columns)
        is_direct = len(tokens) <= FEW_TOKENS and not int8_activations
        tokens = tokens if is_direct else tokens.float()
        scales = self._token_scales(tokens) if int8_activations else None
        y = torch.zeros(len(tokens), self._n_rows)
        for piece, matrix, columns in zip(self._pieces, self._matrices, self._columns, strict=True):
            lent, inputs = piece.lend(lend), tokens[:, columns]
            if is_direct:
                y += matrix.multiply_to_floats(inputs, lent)
            elif scales is None:
                y += matrix.multiply(inputs, None, lent, workspace, int8_activations=False)
            else:
                y += matrix.multiply_rounded(inputs, scales, lent)
        if bias is not None:
            y += bias
        return y.to(x.dtype).reshape(*x.shape[:-1], self._n_rows)

    def multiply_transposed(self, y: torch.Tensor, lend: Lend, workspace: Bytes) -> torch.Tensor:
        """Multiply piece by piece, as `HostMatrix.multiply_transposed` says."""
        tokens = y.reshape(-1, self._n_rows)
        found = (
            matrix.multiply_transposed(tokens, piece.lend(lend), workspace)
            for piece, matrix in zip(self._pieces, self._matrices, strict=True)
        )
        x = self._beside(found, len(tokens), y.dtype)
        return x.reshape(*y.shape[:-1], x.shape[-1])

    def look_up(self, ids: torch.Tensor, lend: Lend, workspace: Bytes, dtype: torch.dtype) -> torch.Tensor:
        """Look rows up, as `HostMatrix.look_up` says. Every row needs all pieces."""
        found = (
            matrix.look_up(ids, piece.lend(lend), workspace, dtype)
            for piece, matrix in zip(self._pieces, self._matrices, strict=True)
        )
        return self._beside(found, len(ids), dtype)

    def values(self, lend: Lend, workspace: Bytes, dtype: torch.dtype) -> torch.Tensor:
        """Decode the matrix, as `HostMatrix.values` says."""
        found = (
            matrix.values(piece.lend(lend), workspace, dtype)
            for piece, matrix in zip(self._pieces, self._matrices, strict=True)
        )
        return self._beside(found, self._n_rows, dtype)

    def _beside(self, parts: Iterator[torch.Tensor], n_rows: int, dtype: torch.dtype) -> torch.Tensor:
        """Columns of all pieces put into their places."""
        if len(self._matrices) == 1:
            return next(parts)
        out = torch.empty(n_rows, sum(len(columns) for columns in self._columns), dtype=dtype)
        for columns, part in zip(self._columns, parts, strict=True):
            out[:, columns] = part
        return out

    def _token_scales(self, tokens: torch.Tensor) -> torch.Tensor:
        """The scales of whole tokens, float32 [n_tokens], as CodeMatrix.round has them."""
        largest = torch.zeros(len(tokens))
        for matrix, columns in zip(self._matrices, self._columns, strict=True):
            torch.maximum(largest, matrix.scaled(tokens[:, columns]).abs().amax(1), out=largest)
        scales = largest / 127
        return torch.where(scales > 0, scales, 1.0)
