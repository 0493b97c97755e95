"""Bytes of a remote file that are known to be read once, about in an order: they are fetched before anybody asks."""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Range: TypeAlias = tuple[int, int]
"""First byte, and the one behind the last."""

N_THREADS = 12
"""More than of those that fetch blocks: many a request is of a few hundred bytes, and only waits."""
AHEAD_BYTES = 16 << 20
"""What is in memory at most that nobody has asked for yet."""
_PADDING = 4096
"""Ranges so near to each other, with none between, are one request."""


class _State(Enum):
    NEW = 0
    COMING = 1
    READY = 2
    READ = 3


@dataclass(eq=False)
class _Piece:
    """What one request asks for. `place`: in the order that was announced. `n_unread`: its bytes that will be read."""

    begin: int
    end: int
    place: int
    n_unread: int
    state: _State = _State.NEW
    data: bytes = b""
    error: BaseException | None = None

    @property
    def n_bytes(self) -> int:
        return self.end - self.begin


class Expected:
    """`ranges` of a file, in the order in which they will be read; those of one request have `most_bytes` at most.

    Each is fetched once by `fetch` (begin, end), by threads that run ahead of whoever reads, and let go when it was
    read. The order is a guess: what is asked for earlier is fetched at once, by whoever asks. Thread-safe.
    """

    def __init__(
        self, ranges: Iterable[Range], fetch: Callable[[int, int], bytes], *, most_bytes: int
    ) -> None:
        self._fetch = fetch
        self._pieces = _pieces_of(ranges, most_bytes)
        self._sorted = sorted(self._pieces, key=lambda piece: piece.begin)
        self._begins = [piece.begin for piece in self._sorted]
        self._changed = threading.Condition()
        self._next = 0
        self._n_ahead_bytes = 0
        self._is_closed = False
        for number in range(min(N_THREADS, len(self._pieces))):
            # Daemons: a server that keeps one waiting shall not keep the process from ending.
            name = f"spqfmt-expected-{number}"
            try:
                threading.Thread(target=self._work, name=name, daemon=True).start()
            except RuntimeError:
                break  # whoever reads fetches

    def close(self) -> None:
        """Fetch no more; whoever waits gets ValueError."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def read_into(self, offset: int, out: NDArray[np.uint8]) -> bool:
        """Fill `out` with the bytes from `offset` on; False where they are not expected, or were read before.

        Raises what fetching them raised.
        """
        pieces = self._covering(offset, offset + out.size)
        for piece in pieces:
            data = self._data(piece)
            if data is None:
                return False
            begin, end = max(offset, piece.begin), min(offset + out.size, piece.end)
            out[begin - offset : end - offset] = np.frombuffer(data, np.uint8)[
                begin - piece.begin : end - piece.begin
            ]
        with self._changed:
            for piece in pieces:
                self._was_read(piece, min(offset + out.size, piece.end) - max(offset, piece.begin))
        return bool(pieces)

    def _covering(self, begin: int, end: int) -> Sequence[_Piece]:
        """The pieces that hold all of these bytes; none where there are no such pieces."""
        first = at = bisect_right(self._begins, begin) - 1
        if first < 0:
            return ()
        while begin < end:
            if at == len(self._sorted) or not self._sorted[at].begin <= begin < self._sorted[at].end:
                return ()
            begin = self._sorted[at].end
            at += 1
        return self._sorted[first:at]

    def _data(self, piece: _Piece) -> bytes | None:
        """All bytes of a piece, fetched now if nobody has begun to; None for one that was read."""
        with self._changed:
            while piece.state is _State.COMING and not self._is_closed:
                self._changed.wait()
            if self._is_closed:
                raise ValueError("the remote file is closed")
            _raise(piece)
            if piece.state is _State.READY:
                return piece.data
            if piece.state is _State.READ:
                return None
            self._begin(piece)
            # It comes earlier than was expected: what is behind it will too.
            self._next = piece.place + 1
            self._changed.notify_all()
        data, error = self._bring(piece, leaves_error=False)
        if error is not None:
            raise error
        return data

    def _begin(self, piece: _Piece) -> None:
        piece.state = _State.COMING
        self._n_ahead_bytes += piece.n_bytes

    def _bring(self, piece: _Piece, *, leaves_error: bool) -> tuple[bytes, BaseException | None]:
        """What came of fetching the piece, which others may see from now on, or wait for somebody who tries again.

        `leaves_error`: the next one who reads the piece is to raise the error.
        """
        data, error = b"", None
        try:
            data = self._fetch(piece.begin, piece.end)
        except BaseException as found:  # noqa: BLE001  # raised by whoever reads the piece
            error = found
        with self._changed:
            piece.data, piece.state = data, _State.READY if error is None else _State.NEW
            if error is not None:
                self._n_ahead_bytes -= piece.n_bytes
                piece.error = error if leaves_error else None
            self._changed.notify_all()
        return data, error

    def _was_read(self, piece: _Piece, n_bytes: int) -> None:
        piece.n_unread -= n_bytes
        if piece.n_unread <= 0 and piece.state is _State.READY:
            piece.state, piece.data = _State.READ, b""
            self._n_ahead_bytes -= piece.n_bytes
            self._changed.notify_all()

    def _work(self) -> None:
        """Fetch what comes next, as long as there is room; an error is for whoever reads, and the end."""
        while (piece := self._take()) is not None:
            _, error = self._bring(piece, leaves_error=True)
            if error is not None:
                return

    def _take(self) -> _Piece | None:
        with self._changed:
            while not self._is_closed:
                piece = self._coming()
                if piece is None:
                    return None
                if self._n_ahead_bytes + piece.n_bytes <= AHEAD_BYTES:
                    self._begin(piece)
                    return piece
                self._changed.wait()
            return None

    def _coming(self) -> _Piece | None:
        """The next piece that nobody has begun with, of those before it at the end; None where there is none left."""
        for _ in range(2):
            while self._next < len(self._pieces):
                piece = self._pieces[self._next]
                if piece.state is _State.NEW and piece.error is None:
                    return piece
                self._next += 1
            self._next = 0
        return None


def _raise(piece: _Piece) -> None:
    """Raise what fetching the piece raised, once: the next one who asks tries again."""
    error, piece.error = piece.error, None
    if error is not None:
        raise error


def _pieces_of(ranges: Iterable[Range], most_bytes: int) -> list[_Piece]:
    """Requests for ranges, of which some that follow each other are one. What is there twice is read twice."""
    pieces: list[_Piece] = []
    known: dict[Range, list[_Piece]] = {}
    ranges = list(ranges)
    begins = sorted({begin for begin, _ in ranges})

    def is_padding(begin: int, end: int) -> bool:
        return 0 <= end - begin <= _PADDING and bisect_left(begins, begin) == bisect_left(begins, end)

    for begin, end in ranges:
        for piece in known.get((begin, end), ()):
            piece.n_unread += min(end, piece.end) - max(begin, piece.begin)
        if (begin, end) in known:
            continue
        last = pieces[-1] if pieces else None
        if last is not None and is_padding(last.end, begin) and end - last.begin <= most_bytes:
            last.end, last.n_unread = end, last.n_unread + end - begin
            known[begin, end] = [last]
            continue
        cut = [(at, min(at + most_bytes, end)) for at in range(begin, end, most_bytes)]
        known[begin, end] = [_Piece(a, b, len(pieces) + n, b - a) for n, (a, b) in enumerate(cut)]
        pieces += known[begin, end]
    return pieces
