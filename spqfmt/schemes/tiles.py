"""A matrix of channels by positions in pieces of some million elements, in the order in which its stream has them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from spqfmt.codecs.elements import CARRIERS, Elements
from spqfmt.records import Chunks, TensorRecord
from spqfmt.schemes.base import Fetch

Channels: TypeAlias = range | NDArray[np.unsignedinteger]
"""Numbers of rows or columns."""

TILE_ELEMENTS = 1 << 22
_WORTH_AN_ORDER = 8
"""So many rows take longer to put into their places than an order of the columns takes to make."""
_UNIT_ELEMENTS = 1 << 16
"""What is decoded at once inside a chunk: to fetch less of each channel costs no less."""


def blocks(
    record: TensorRecord,
    role: str,
    fetch: Fetch,
    channels: range,
    positions: range,
    width: int,
    *,
    most: int,
    unit: int = 1,
) -> Iterator[tuple[range, range, Elements]]:
    """Channels as they are stored, positions in them, and their elements, [channels, positions].

    `width` is what a channel holds. A block has at most `most` elements, and either whole channels of those `positions`
    or a part of one channel, cut at multiples of `unit` or between two of them. Where they can, blocks end where chunks
    do, so that none is decoded twice.
    """
    chunks = record.by_role[role].chunks
    if len(positions) > most:
        for channel in channels:
            yield from _of_channel(
                role, fetch, channel, positions=positions, width=width, most=most, unit=unit
            )
        return
    for some in cut(channels, chunks, width, max(1, most // width_read(positions, width))):
        yield some, positions, _of_channels(role, fetch, some, positions=positions, width=width)


def cut(channels: range, chunks: Chunks, width: int, most: int) -> Iterator[range]:
    """Runs of at most so many channels, which end where chunks do if they can."""
    ends = chunks.ends
    borders = ends[ends % width == 0] // width
    first = channels.start
    while first < channels.stop:
        stop = min(channels.stop, first + most)
        at = int(np.searchsorted(borders, stop, "right")) - 1
        if stop < channels.stop and at >= 0 and borders[at] > first:
            stop = int(borders[at])
        yield range(first, stop)
        first = stop


def width_read(positions: range, width: int) -> int:
    """How much of each channel is decoded for these positions: all of it where that costs no more."""
    return width if width <= max(_UNIT_ELEMENTS, 2 * len(positions)) else len(positions)


def _of_channel(
    role: str, fetch: Fetch, channel: int, positions: range, width: int, most: int, unit: int
) -> Iterator[tuple[range, range, Elements]]:
    first = positions.start
    while first < positions.stop:
        stop = min(positions.stop, first + most)
        if stop < positions.stop and stop // unit > first // unit:
            stop -= stop % unit
        elements = fetch(role, channel * width + first, channel * width + stop)
        yield range(channel, channel + 1), range(first, stop), elements[None]
        first = stop


def _of_channels(role: str, fetch: Fetch, channels: range, positions: range, width: int) -> Elements:
    if width_read(positions, width) == width:
        whole = fetch(role, channels.start * width, channels.stop * width).reshape(-1, width)
        return whole if len(positions) == width else whole[:, positions.start : positions.stop]
    parts = [fetch(role, k * width + positions.start, k * width + positions.stop) for k in channels]
    return np.stack(parts)


def runs(numbers: NDArray[np.integer]) -> Iterator[range]:
    """Ascending numbers as runs of consecutive ones."""
    cuts = np.flatnonzero(np.diff(numbers.astype(np.int64)) != 1) + 1
    for first, stop in zip([0, *cuts.tolist()], [*cuts.tolist(), numbers.size], strict=True):
        yield range(int(numbers[first]), int(numbers[stop - 1]) + 1)


class Target:
    """The part of a matrix, `out` [rows, columns], carrier of `dtype`, that tiles are dequantized into."""

    def __init__(
        self,
        out: Elements,
        dtype: str,
        rows: range,
        columns: range,
        permutation: NDArray[np.unsignedinteger] | None = None,
    ) -> None:
        """`permutation`: stored column -> column; tiles are of stored columns, and of all of them."""
        self._out, self._rows, self._columns, self._permutation = out, rows, columns, permutation
        self._name = "f32" if dtype == "f64" else dtype  # binary32 widens to f64 as it is assigned

    @contextmanager
    def room(self, rows: Channels, columns: Channels) -> Iterator[tuple[Elements, str]]:
        """Memory for the weights of a tile, contiguous, and their dtype; they are put into their places at the end."""
        at = _index(rows, self._rows.start)
        if self._permutation is None:
            to = _index(columns, self._columns.start)
            inside = None
        else:
            numbers = (
                self._permutation[columns.start : columns.stop]
                if isinstance(columns, range)
                else self._permutation[columns]
            )
            inside = np.flatnonzero((numbers >= self._columns.start) & (numbers < self._columns.stop))
            to = numbers[inside].astype(np.int64) - self._columns.start
        if isinstance(at, slice) and isinstance(to, slice):
            place = self._out[at, to]
            if place.flags.c_contiguous and place.dtype == CARRIERS[self._name]:
                yield place, self._name
                return
        weights = np.empty((len(rows), len(columns)), CARRIERS[self._name])
        yield weights, self._name
        if inside is not None and inside.size < weights.shape[1]:
            weights = weights[:, inside]
        if isinstance(at, slice) and not isinstance(to, slice) and self._fill(at, to, weights):
            return
        if isinstance(at, slice) or isinstance(to, slice):
            self._out[at, to] = weights
        else:
            self._out[at[:, None], to] = weights

    def _fill(self, at: slice, to: NDArray[np.int64], weights: Elements) -> bool:
        """Put whole rows into their places where that is worth an order of columns of its own; whether it was."""
        room = self._out[at]
        if room.shape != weights.shape or room.dtype != weights.dtype or len(room) < _WORTH_AN_ORDER:
            return False
        # Elements are taken several times faster than they are assigned.
        np.take(weights, np.argsort(to), axis=1, out=room, mode="clip")
        return True


def _index(channels: Channels, first: int) -> slice | NDArray[np.int64]:
    if isinstance(channels, range):
        return slice(channels.start - first, channels.stop - first)
    return channels.astype(np.int64) - first


def put(
    out: Elements, rows: range, columns: range, of_rows: Channels, of_columns: Channels, values: Elements
) -> None:
    """Values of some rows and columns into their places in `out`, which holds `rows` and `columns`."""
    at, to = _index(of_rows, rows.start), _index(of_columns, columns.start)
    if isinstance(at, slice) or isinstance(to, slice):
        out[at, to] = values
    else:
        out[at[:, None], to] = values
