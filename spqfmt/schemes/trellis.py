"""The trellis of a uniform tensor: its stream holds path codes, and all else sees codes (FORMAT.md 5.3)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from spqfmt.codecs.chunks import TARGET_CHUNK_BYTES, chunk_sizes
from spqfmt.codecs.elements import Elements
from spqfmt.codecs.threads import n_threads
from spqfmt.errors import CorruptError
from spqfmt.kernels.json_text import Wanted
from spqfmt.kernels.trellis import HISTORY_ROWS, Codes, fold, unfold
from spqfmt.records import TensorRecord
from spqfmt.schemes.base import Streamed, check_int

PARAMETERS: Mapping[str, Wanted] = {"trellis": {"rows": "scalar"}}
_AT_ONCE = 1 << 22
_NO_PATH = "path codes that are not from -64 to 63"
_Borders: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class TrellisTiles:
    """Where tiles of stored rows begin: after `height` rows, in each matrix of a stack, in each table class.

    `stacked_rows` are those of a matrix; `borders`, where there are classes, the rows at which these end.
    """

    height: int
    stacked_rows: int
    borders: _Borders | None = None

    def pieces(self, rows: range) -> Iterator[tuple[range, int, int]]:
        """The rows in pieces of tiles of one height: each with that height, and its first row's place in its tile."""
        if not rows:
            return
        height, stacked = self.height, self.stacked_rows
        if self.borders is None and (stacked <= height or not stacked % height):
            height = min(stacked, height)
            yield rows, height, rows.start % height
            return
        at = rows.start
        while at < rows.stop:
            begin, end = at // stacked * stacked, (at // stacked + 1) * stacked
            if self.borders is not None:
                number = int(np.searchsorted(self.borders, at, "right"))
                begin = max(begin, int(self.borders[number - 1]) if number else 0)
                end = min(end, int(self.borders[number]))
            yield range(at, min(end, rows.stop)), height, (at - begin) % height
            at = end

    def start(self, row: int) -> int:
        """The row at which the tile of `row` begins."""
        [(_, _, place)] = self.pieces(range(row, row + 1))
        return row - place


def trellis_rows(record: TensorRecord) -> int | None:
    """Rows of a tile of a tensor whose codes are stored as path codes; None where they are not."""
    if record.scheme != "uniform" or "trellis" not in record.parameters:
        return None
    parameter = record.parameters["trellis"]
    rows = parameter.get("rows") if isinstance(parameter, dict) else None
    return check_int(rows, f"tensor {record.name!r}: rows of a trellis", 1)


def tiles_of_record(record: TensorRecord) -> TrellisTiles | None:
    """The tiles of a tensor; None where it has no trellis."""
    height = trellis_rows(record)
    if height is None:
        return None
    class_sizes = record.parameters.get("class_sizes")
    assert class_sizes is None or isinstance(class_sizes, list)
    return tiles_of(height, record.stacked_rows, class_sizes)


def tiles_of(height: int, stacked_rows: int, class_sizes: Sequence[int] | None) -> TrellisTiles:
    """The tiles of a tensor with classes of so many rows, or without."""
    borders = None if class_sizes is None else np.cumsum(np.array(class_sizes, np.int64))
    return TrellisTiles(height, stacked_rows, borders)


def check(record: TensorRecord) -> None:
    """Raise CorruptError unless a tensor with a trellis may have one."""
    if trellis_rows(record) is None:
        return
    if record.parameters.get("orientation") != "rows" or record.by_role["codes"].dtype != "i8":
        raise CorruptError(f"tensor {record.name!r}: a trellis of other codes than i8 by rows")


def verify(record: TensorRecord, fetch: Streamed) -> None:
    """Raise CorruptError where a path code is none."""
    if trellis_rows(record) is not None:
        for codes, _ in fetch.runs("codes"):
            _require(record, not codes.size or bool(codes.min() >= -64 and codes.max() <= 63))


def folded(codes: Codes, tiles: TrellisTiles) -> Codes:
    """Path codes of codes, int8 [rows, columns] as stored. ValueError where they are no path."""
    pieces = tiles.pieces(range(len(codes)))
    return np.concatenate([fold(codes[some.start : some.stop], height) for some, height, _ in pieces])


def tile_chunks(n_rows: int, height: int, width: int) -> list[int]:
    """Elements of chunks of so many rows, from where a tile begins: they end where tiles do, or a large tile does."""
    tile = min(n_rows, height) * width
    if tile <= TARGET_CHUNK_BYTES:
        n_tiles = -(-n_rows // height)
        n_chunks = -(-n_tiles // (TARGET_CHUNK_BYTES // tile))
        size = -(-n_tiles // n_chunks) * tile
        return [min(size, n_rows * width - first) for first in range(0, n_rows * width, size)]
    heights = (min(height, n_rows - first) for first in range(0, n_rows, height))
    return [size for n in heights for size in chunk_sizes(n * width, 8, width)]


def unfold_rows(tiles: TrellisTiles, first: int, codes: Codes, n_threads: int = 1) -> None:
    """Turn path codes, int8 [rows, columns] from row `first` on, with which a tile begins, into codes where they are.

    Raises CorruptError.
    """
    history = np.zeros((HISTORY_ROWS, codes.shape[1]), np.int8)
    for some, height, place in tiles.pieces(range(first, first + len(codes))):
        block = codes[some.start - first : some.stop - first]
        if not unfold(block, height, place, history=history, n_threads=n_threads):
            raise CorruptError(_NO_PATH)


def unfolded(record: TensorRecord, fetch: Streamed) -> Streamed:
    """What gives codes where `fetch` gives path codes; `fetch` itself where these are codes."""
    tiles = tiles_of_record(record)
    return fetch if tiles is None else _Unfolded(record, fetch, tiles)


class _Unfolded:
    """Codes of a stream of path codes, from anywhere on; those that follow what was asked for last cost least."""

    def __init__(self, record: TensorRecord, fetch: Streamed, tiles: TrellisTiles) -> None:
        self._record, self._fetch, self._tiles = record, fetch, tiles
        self._columns = record.matrix_shape[1]
        self._at = -1
        """The element after the last that was unfolded; `_history` is what came before it in each column."""
        self._history = np.zeros((HISTORY_ROWS, self._columns), np.int8)

    def __call__(self, role: str, first: int = 0, stop: int | None = None) -> Elements:
        if role != "codes":
            return self._fetch(role, first, stop)
        stop = self._record.by_role[role].n if stop is None else stop
        out = np.empty(max(0, stop - first), np.int8)
        self.into(role, first, out)
        return out

    def into(self, role: str, first: int, out: Elements) -> None:
        if role == "codes" and out.size:
            begin = self._tiles.start(first // self._columns) * self._columns
            if not begin <= self._at <= first:
                self._at = begin
            while self._at < first:
                self._next(np.empty(min(_AT_ONCE, first - self._at), np.int8))
            self._next(out)
        else:
            self._fetch.into(role, first, out)

    def runs(self, role: str, first: int = 0, stop: int | None = None) -> Iterator[tuple[Elements, int]]:
        if role != "codes":
            yield from self._fetch.runs(role, first, stop)
            return
        stop = self._record.by_role[role].n if stop is None else stop
        for at in range(first, stop, _AT_ONCE):
            yield self(role, at, min(stop, at + _AT_ONCE)), 1

    def _next(self, out: Elements) -> None:
        """Fill `out` with the codes from `_at` on: the end of a row, whole rows, the begin of one."""
        self._fetch.into("codes", self._at, out)
        done = 0
        while done < out.size:
            row, column = divmod(self._at, self._columns)
            width = min(self._columns - column, out.size - done)
            n_rows = max(1, (out.size - done) // self._columns) if width == self._columns else 1
            block = out[done : done + n_rows * width].reshape(n_rows, width)
            for some, height, place in self._tiles.pieces(range(row, row + n_rows)):
                codes = block[some.start - row : some.stop - row]
                history = self._history[:, column : column + width]
                _require(self._record, unfold(codes, height, place, history=history, n_threads=n_threads()))
            done += block.size
            self._at += block.size


def _require(record: TensorRecord, fits: bool) -> None:
    if not fits:
        raise CorruptError(f"tensor {record.name!r}: {_NO_PATH}")
