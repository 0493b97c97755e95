"""Rows of an embedding: only the parts that hold them are decoded, and the last ones used are kept."""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from spqfmt.codecs.base import Bytes
from spqfmt.codecs.elements import CARRIERS
from spqfmt.kernels.torch_arrays import to_torch
from spqfmt.loaders.packed.buffers import TakenBackError, View, allocate
from spqfmt.loaders.packed.multiply import Lend
from spqfmt.loaders.packed.store import Store
from spqfmt.loaders.packed.tiles import NAMES, dequantize_columns, dequantize_rows
from spqfmt.residency.parts import Part, by_columns
from spqfmt.residency.sides import Sides
from spqfmt.schemes.floats import narrow
from spqfmt.schemes.uniform import dequantize as uniform_formula


class RowCache:
    """`n_slots` decoded parts; the one used longest ago makes room. For one thread at a time.

    `stored_bytes`: of the largest part, for those that are read from disk.
    """

    def __init__(self, store: Store, slot_bytes: int, stored_bytes: int, n_slots: int) -> None:
        self._store = store
        self._stored = allocate(stored_bytes)
        self._free = [allocate(slot_bytes) for _ in range(n_slots)]
        self._kept: OrderedDict[int, Bytes] = OrderedDict()
        self._held: list[tuple[View, Bytes]] = []
        self.n_bytes = slot_bytes * n_slots + stored_bytes

    @contextmanager
    def lend(self, number: int, name: str) -> Iterator[View]:
        """The decoded bytes of a part while the context lasts.

        Raises what reading or decoding raises; TakenBackError where arrays over all slots have outlived their loans.
        """
        size = self._store.parts[number].decoded_bytes
        buffer = self._kept.pop(number, None)
        if buffer is None:
            buffer = self._claim()
            try:
                self._fill(number, buffer[:size])
            except BaseException:
                self._free.append(buffer)
                raise
        view = View(name, buffer[:size])
        try:
            yield view
        finally:
            if view.take_back():
                self._kept[number] = buffer
            else:
                self._held.append((view, buffer))

    def _claim(self) -> Bytes:
        """A slot that may be filled."""
        if not self._free:
            self._free = [buffer for view, buffer in self._held if view.take_back()]
            self._held = [(view, buffer) for view, buffer in self._held if not view.take_back()]
        if self._free:
            return self._free.pop()
        if self._kept:
            return self._kept.popitem(last=False)[1]
        names = ", ".join(view.name for view, _ in self._held)
        raise TakenBackError(f"arrays over buffers that were taken back are still held: {names}")

    def _fill(self, number: int, out: Bytes) -> None:
        stored = self._store.compressed(number)
        if stored is None:
            stored = self._stored[: self._store.parts[number].stored_bytes]
            self._store.read(number, stored)
        self._store.decode(number, stored, out)


def look_up(
    ids: torch.Tensor, parts: tuple[Part, ...], sides: Sides, lend: Lend, workspace: Bytes, dtype: torch.dtype
) -> torch.Tensor:
    """Rows `ids` [n] of the matrix as [n, columns] of `dtype`. Raises IndexError for one that is not there."""
    n_rows, n_columns = sides.record.matrix_shape
    wanted = ids.numpy().astype(np.int64)
    if wanted.size and not 0 <= wanted.min() <= wanted.max() < n_rows:
        raise IndexError(
            f"{sides.record.name}: id {wanted.max()} of {n_rows} rows, the least is {wanted.min()}"
        )
    out = torch.empty(len(wanted), n_columns, dtype=dtype)
    if by_columns(sides.record):
        _by_columns(parts, sides, lend, wanted, out)
    else:
        _by_rows(parts, sides, lend, wanted, workspace, out)
    if sides.permutation is not None:
        restored = torch.empty_like(out)
        restored[:, torch.from_numpy(sides.permutation)] = out
        return restored
    return out


def _by_columns(
    parts: tuple[Part, ...], sides: Sides, lend: Lend, wanted: NDArray[np.int64], out: torch.Tensor
) -> None:
    for part in parts:
        with lend(part) as view:
            columns, matrix = dequantize_columns(part, sides, view.bytes)
        out[:, torch.from_numpy(columns)] = torch.from_numpy(matrix[wanted]).to(out.dtype)


def _by_rows(
    parts: tuple[Part, ...],
    sides: Sides,
    lend: Lend,
    wanted: NDArray[np.int64],
    workspace: Bytes,
    out: torch.Tensor,
) -> None:
    if sides.order is not None:
        stored_at = np.empty(sides.order.size, np.int64)
        stored_at[sides.order] = np.arange(sides.order.size)
        wanted = stored_at[wanted]
    for part in parts:
        places = np.flatnonzero((wanted >= part.first) & (wanted < part.stop))
        if places.size:
            with lend(part) as view:
                _rows_of(part, sides, view.bytes, wanted[places], torch.from_numpy(places), workspace, out)


def _rows_of(
    part: Part,
    sides: Sides,
    codes: Bytes,
    rows: NDArray[np.int64],
    places: torch.Tensor,
    workspace: Bytes,
    out: torch.Tensor,
) -> None:
    n_columns = part.record.matrix_shape[1]
    local = rows - part.first
    if part.record.scheme == "dense":
        values = codes.view(CARRIERS[part.dtype]).reshape(-1, n_columns)[local]
        out[places] = to_torch(values, part.dtype, values.shape).to(out.dtype)
    elif part.record.scheme == "uniform" and part.dtype == "i8" and sides.outliers is None:
        assert sides.row is not None
        chosen = codes.view(np.int8).reshape(-1, n_columns)[local]
        weights = uniform_formula(chosen, np.float32(1), sides.row[rows], sides.column)
        name = NAMES[out.dtype]
        out[places] = to_torch(narrow(weights, name), name, weights.shape)
    else:
        for place, row in zip(places, local.tolist(), strict=True):
            out[place] = dequantize_rows(part, sides, codes, row, row + 1, out.dtype, workspace)[0]
