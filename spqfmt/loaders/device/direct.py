"""What a model calls for every token, with as little of Python between a module and the launch as there can be.

A launch takes the device a few microseconds, and each function of Python on the way takes the host half of one. So all
that does not change is bound, checked and compiled once, and everything unusual is left to the general way.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import addmm, mm, nn
from torch.nn.functional import linear

from spqfmt.kernels.device import MAX_TOKENS, DeviceKernels
from spqfmt.kernels.device.fusing import MAX_FUSED_TOKENS, FusedPlan, kind_of, put_changes
from spqfmt.kernels.device.matrix import DeviceFloats, Matrix
from spqfmt.kernels.device.prepared import ALIGNMENT, Product
from spqfmt.kernels.torch_arrays import TORCH_DTYPES
from spqfmt.loaders.device.cuda import told
from spqfmt.loaders.device.fused import fused_amounts
from spqfmt.loaders.device.pieces import WeightPiece
from spqfmt.loaders.device.seam import Device, Memory, Queue, Work
from spqfmt.loaders.device.sides import DeviceSides
from spqfmt.loaders.packed.weights import DirectProduct

LookUp = Callable[[torch.Tensor], torch.Tensor]
"""Rows by numbers [n], int64: [n, columns] in the model's dtype."""


@dataclass(frozen=True)
class DirectEngine:
    """What calls of one model have in common. `hold` gives the decoded bytes of a group until another one is held.

    `stored` gives those of a piece that stays on the device as it is stored, and what multiplies by it there, in
    scratch memory that is the `workspace`.
    """

    device: Device
    kernels: DeviceKernels
    dtype: torch.dtype
    hold: Callable[[int], Memory]
    stored: Callable[[WeightPiece], tuple[Memory, FusedPlan] | None]
    workspace: Memory
    lock: AbstractContextManager[Any]


class _Codes:
    """The codes of one piece, where they are now; `work` is what a watched device is told of a product with them."""

    def __init__(self, piece: WeightPiece, engine: DirectEngine) -> None:
        self._piece, self._hold = piece, engine.hold
        self._known: dict[int, tuple[torch.Tensor, Work]] = {}
        self._stays = None if piece.home is None else self._of(piece.home)

    def now(self) -> tuple[torch.Tensor, Work]:
        """Lend them for what is launched next."""
        if self._stays is not None:
            return self._stays
        group = self._hold(self._piece.group)
        found = self._known.get(group.address)
        if found is None:
            found = self._known[group.address] = self._of(self._piece.inside(group))
        return found

    def _of(self, memory: Memory) -> tuple[torch.Tensor, Work]:
        amounts = {"compute": self._piece.decoded_bytes}
        return memory.tensor, Work(f"compute {self._piece.name}", (memory,), (), amounts)


class _Stored:
    """A piece as it is stored, and how it is multiplied by without being decoded."""

    def __init__(self, piece: WeightPiece, sent: Memory, plan: FusedPlan, workspace: Memory) -> None:
        amounts = fused_amounts(piece.record, piece.decoded_bytes)
        work = Work(f"fused {piece.name}", (sent,), (workspace,), amounts)
        self.plan = plan
        self._found = sent.tensor, work

    def now(self) -> tuple[torch.Tensor, Work]:
        """All that was sent of its group."""
        return self._found


def direct_product(
    pieces: tuple[WeightPiece, ...], sides: DeviceSides, engine: DirectEngine
) -> DirectProduct | None:
    """`x` [..., columns] of up to MAX_TOKENS tokens in the model's dtype times a matrix, plus bias: in x's dtype.

    None: the matrix is not such. The call gives None where gradients are wanted, under autocast, and for other inputs.
    """
    if sides.input_order is not None or sides.output_order is not None:
        return None
    n_rows, n_columns = pieces[0].record.matrix_shape
    codes = [_Codes(piece, engine) for piece in pieces]
    launch = _dense(pieces, codes, engine) if sides.matrix is None else _coded(pieces, codes, sides, engine)
    if launch is None:
        return None
    dtype, most, lock = engine.dtype, MAX_TOKENS * n_columns, engine.lock
    where = engine.device.torch_device
    kind = where.type
    one = torch.empty(1, dtype=dtype, device=where)
    last = torch.Size(), one

    def product(x: torch.Tensor, bias: nn.Parameter | None) -> torch.Tensor | None:
        nonlocal last
        if (
            type(x) is not torch.Tensor
            or x.dtype is not dtype
            or x.device != where
            or (n := x.numel()) > most
            or not n
            or (shape := x.shape)[-1] != n_columns
            or not x.is_contiguous()
            or x.data_ptr() % ALIGNMENT
            or torch.is_autocast_enabled(kind)
            or (torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)))
        ):
            return None
        known, like = last
        if known != shape:
            like = one.expand(*shape[:-1], n_rows)
            last = shape, like
        y = torch.empty_like(like)  # in half the time that making it from numbers takes
        with lock:
            return launch(x, y, n // n_columns, bias)

    return product


_Launch = Callable[[torch.Tensor, torch.Tensor, int, torch.Tensor | None], torch.Tensor]


def _coded(
    pieces: tuple[WeightPiece, ...], codes: list[_Codes], sides: DeviceSides, engine: DirectEngine
) -> _Launch | None:
    matrix = sides.matrix
    assert matrix is not None
    if matrix.by_columns:
        return None

    def decoded(piece: WeightPiece, bias: torch.Tensor | None, *, is_one: bool) -> Product:
        rows = range(piece.first, piece.stop)
        return engine.kernels.prepare_product(matrix, rows, engine.dtype, bias, is_one=is_one)

    stored = [_stored(piece, own, matrix, engine) for piece, own in zip(pieces, codes, strict=True)]
    return _by_tokens(pieces, codes, stored, matrix, engine=engine, decoded=decoded)


_Products = list[tuple["_Codes | _Stored", Product]]
"""Where the codes of each piece are now, and what multiplies by them."""


def _by_tokens(
    pieces: tuple[WeightPiece, ...],
    codes: list[_Codes],
    stored: list[_Stored | None],
    matrix: Matrix | DeviceFloats,
    *,
    engine: DirectEngine,
    decoded: Callable[..., Product],
) -> _Launch:
    """Few tokens straight from the pieces that are such, and else by what `decoded` prepares."""
    device, enqueue = engine.device, engine.device.enqueue

    def prepared(bias: torch.Tensor | None) -> tuple[_Products, _Products, _Products]:
        """For one token, for a few, for several."""
        found: tuple[_Products, _Products, _Products] = [], [], []
        for piece, own, compressed in zip(pieces, codes, stored, strict=True):
            first = [decoded(piece, bias, is_one=is_one) for is_one in (True, False)]
            fused = [_fused(compressed, matrix, engine, bias, is_one=is_one) for is_one in (True, False)]
            found[0].append(fused[0] or (own, first[0]))
            found[1].append(fused[1] or (own, first[1]))
            found[2].append((own, first[1]))
        return found

    bound: tuple[torch.Tensor | None, int] = None, 0
    single, few, several = prepared(None)

    def launch(x: torch.Tensor, y: torch.Tensor, n: int, bias: torch.Tensor | None) -> torch.Tensor:
        nonlocal bound, single, few, several
        at = 0 if bias is None else bias.data_ptr()
        if bound[1] != at:
            bound = bias, at
            single, few, several = prepared(bias)
        chosen = single if n == 1 else few if n <= MAX_FUSED_TOKENS else several
        if device.is_watched:
            for own, product in chosen:
                tensor, work = own.now()
                enqueue(Queue.COMPUTE, work, partial(product, x, tensor, y, n))
            return y
        try:
            for own, product in chosen:
                product(x, own.now()[0], y, n)
        except RuntimeError:
            with told(f"compute {pieces[0].name}"):
                raise
        return y

    return launch


def _stored(
    piece: WeightPiece, codes: _Codes, matrix: Matrix | DeviceFloats, engine: DirectEngine
) -> _Stored | None:
    """The piece as it is stored, and what its outliers change, for which it is decoded once; None: it is not such."""
    found = engine.stored(piece)
    if found is None or kind_of(matrix) is None:
        return None
    if isinstance(matrix, Matrix) and matrix.outliers is not None:
        if matrix.outliers.changes is None:
            return None
        with engine.lock:
            decoded, work = codes.now()
            rows = range(piece.first, piece.stop)
            engine.device.enqueue(Queue.COMPUTE, work, partial(put_changes, decoded, matrix, rows))
    return _Stored(piece, *found, engine.workspace)


def _fused(
    stored: _Stored | None,
    matrix: Matrix | DeviceFloats,
    engine: DirectEngine,
    bias: torch.Tensor | None,
    *,
    is_one: bool,
) -> tuple[_Stored, Product] | None:
    if stored is None:
        return None
    sent, _ = stored.now()
    product = engine.kernels.prepare_fused(
        sent, stored.plan, matrix, engine.dtype, bias=bias, sums=engine.workspace.tensor, is_one=is_one
    )
    return None if product is None else (stored, product)


def _dense(pieces: tuple[WeightPiece, ...], codes: list[_Codes], engine: DirectEngine) -> _Launch | None:
    """torch's products with weights of the model's dtype, and those straight from what is stored."""
    if TORCH_DTYPES[pieces[0].dtype] is not engine.dtype:
        return None
    dtype, n_columns, device = engine.dtype, pieces[0].record.matrix_shape[1], engine.device
    matrix = DeviceFloats(pieces[0].record.matrix_shape)
    known: dict[int, torch.Tensor] = {}
    rows = [slice(piece.first, piece.stop) for piece in pieces]

    def weights_of(values: torch.Tensor) -> torch.Tensor:
        found = known.get(id(values))
        if found is None:
            found = known[id(values)] = values.view(dtype).view(-1, n_columns)
        return found

    def decoded(piece: WeightPiece, bias: torch.Tensor | None, *, is_one: bool) -> Product:
        inside = slice(piece.first, piece.stop)

        def product(x: torch.Tensor, values: torch.Tensor, y: torch.Tensor, n: int) -> None:
            tokens, weights, out = x.view(n, n_columns), weights_of(values).t(), y.view(n, -1)[:, inside]
            if bias is None:
                mm(tokens, weights, out=out)
            else:
                addmm(bias[inside], tokens, weights, out=out)

        return product

    stored = [_stored(piece, own, matrix, engine) for piece, own in zip(pieces, codes, strict=True)]
    if any(stored):
        return _by_tokens(pieces, codes, stored, matrix, engine=engine, decoded=decoded)

    def product(
        x: torch.Tensor, values: torch.Tensor, y: torch.Tensor, n: int, inside: slice
    ) -> torch.Tensor:
        """In memory of its own where the matrix is one piece, else into rows of `y`."""
        if len(rows) == 1:
            return linear(x, weights_of(values))
        mm(x.view(n, n_columns), weights_of(values).t(), out=y.view(n, -1)[:, inside])
        return y

    def launch(x: torch.Tensor, y: torch.Tensor, n: int, bias: torch.Tensor | None) -> torch.Tensor:
        for own, inside in zip(codes, rows, strict=True):
            values, work = own.now()
            if device.is_watched:
                y = device.enqueue(Queue.COMPUTE, work, partial(product, x, values, y, n=n, inside=inside))
                continue
            try:
                y = product(x, values, y, n=n, inside=inside)
            except RuntimeError:
                with told(work.label):
                    raise
        return y if bias is None else y + bias

    return launch


def look_up(pieces: tuple[WeightPiece, ...], sides: DeviceSides, engine: DirectEngine) -> LookUp | None:
    """Rows by number of a matrix that stays decoded on the device; None for any other."""
    if len(pieces) > 1 or pieces[0].home is None:
        return None
    n_rows, n_columns = pieces[0].record.matrix_shape
    values, work = _Codes(pieces[0], engine).now()
    matrix, dtype, enqueue = sides.matrix, engine.dtype, engine.device.enqueue
    if matrix is None:
        if sides.input_order is not None:
            return None
        weights = values.view(TORCH_DTYPES[pieces[0].dtype]).view(n_rows, n_columns)

        def found(ids: torch.Tensor) -> torch.Tensor:
            return weights.index_select(0, ids).to(dtype)

    elif matrix.by_columns or sides.input_order is not None:
        return None
    else:
        rows = engine.kernels.prepare_rows(matrix, range(n_rows), dtype)

        def found(ids: torch.Tensor) -> torch.Tensor:
            out = torch.empty(len(ids), n_columns, dtype=dtype, device=ids.device)
            if len(ids):
                rows(values, ids, out, len(ids))
            return out

    order = sides.output_order

    def rows_of(ids: torch.Tensor) -> torch.Tensor:
        if order is not None:
            ids = order.index_select(0, ids).long()
        return enqueue(Queue.COMPUTE, work, lambda: found(ids))

    return rows_of
