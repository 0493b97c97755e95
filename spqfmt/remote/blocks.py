"""A remote file as `read_into`: blocks that threads fetch ahead of who reads in order, some of them held."""

import os
import queue
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterable
from concurrent.futures import Future
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from spqfmt.address import Address
from spqfmt.errors import RemoteError, TruncatedError
from spqfmt.remote.base import N_CONNECTIONS, RemoteFile
from spqfmt.remote.cache import Cache
from spqfmt.remote.expected import Expected, Range

Bytes: TypeAlias = NDArray[np.uint8]

TAIL_BYTES = 1 << 20
"""What the first request asks for: the trailer, and the index of all but very large models."""
BLOCK_BYTES = 1 << 20
N_AHEAD = 8
N_HELD = 32
"""BlocksAhead in memory at most: those ahead of a few readers."""
_WORTH_KEEPING = 16
"""With a cache, reads of more than this part of a block take all of it."""
_GAP_BYTES = 1 << 16
_SLOW_LINK = 10e6
"""Bytes a second, taken for the rate of a file of which next to nothing was read."""


class BlocksAhead:
    """The bytes of a remote file. Thread-safe.

    A read is one request of exactly its bytes, unless the tail has them. Once `start_ahead` was called, reads that go
    on where another one ended take blocks, which are held, and have those behind fetched; so do large ones. With a
    cache these are smaller, and blocks that it has are not fetched. Who knows what will be read says so by `expect`:
    then nothing else is fetched ahead.
    """

    def __init__(self, file: RemoteFile, cache: Cache | None = None) -> None:
        self._file = file
        started = time.perf_counter()
        self._tail = file.tail(TAIL_BYTES)
        self._seconds, self._fetched = time.perf_counter() - started, len(self._tail)
        self.n_bytes = file.n_bytes
        self._tail_offset = self.n_bytes - len(self._tail)
        # Without a mark a file that has changed would look like this one.
        self._cached = (
            cache.of_file(file.address.unsigned, file.mark, self.n_bytes, BLOCK_BYTES)
            if cache is not None and file.mark
            else None
        )
        self._is_ahead = False
        self.n_read_bytes = 0
        """Bytes that all threads have asked for since `start_ahead`."""
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._ends: deque[int] = deque(maxlen=N_HELD)
        self._held: OrderedDict[int, Future[bytes]] = OrderedDict()
        self._wanted: queue.SimpleQueue[tuple[int, Future[bytes]] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._stop = threading.Event()
        self._expected: Expected | None = None
        self._process = os.getpid()

    @property
    def rate(self) -> float:
        """Bytes a second of what was read so far, for plans."""
        return self._fetched / self._seconds if self._fetched > BLOCK_BYTES // 2 else _SLOW_LINK

    def start_ahead(self) -> None:
        """Fetch ahead from now on: the index was read."""
        self._is_ahead = True
        self.n_read_bytes = 0
        self._ends.clear()

    def expect(self, ranges: Iterable[Range]) -> None:
        """These bytes will be read, each once and about in this order: fetch them ahead, and no others from now on."""
        self._own()
        if self._expected is not None:
            self._expected.close()
        here = [(begin, min(end, self._tail_offset)) for begin, end in ranges if begin < self._tail_offset]
        self._expected = Expected(here, self._range, most_bytes=BLOCK_BYTES)

    def _own(self) -> None:
        """In a forked child begin anew: it has neither the threads nor the right to its parent's connections."""
        if self._process != os.getpid():
            self._file.close()
            self._reset()

    def forget(self, offset: int, n_bytes: int) -> None:
        """Nothing: no page cache has any of it."""

    def close(self) -> None:
        """Stop fetching; later reads raise ValueError."""
        self._own()
        self._stop.set()
        if self._expected is not None:
            self._expected.close()
        with self._lock:
            for _ in self._threads:
                self._wanted.put(None)
            self._held.clear()
        self._file.close()

    def read_into(self, offset: int, out: Bytes) -> None:
        """Fill `out` with the bytes from `offset` on. Raises TruncatedError past the end, RemoteError."""
        self._own()
        if self._stop.is_set():
            raise ValueError("the remote file is closed")
        end = offset + out.size
        if end > self.n_bytes:
            raise TruncatedError("the file ends before its end is due", self.n_bytes)
        with self._lock:
            self.n_read_bytes += out.size
        # What the tail has is not fetched again.
        middle = max(offset, min(end, self._tail_offset))
        first, rest = out[: middle - offset], out[middle - offset :]
        if first.size and not (self._expected is not None and self._expected.read_into(offset, first)):
            self._read(offset, first)
        at = middle - self._tail_offset
        rest[:] = np.frombuffer(self._tail, np.uint8)[at : at + rest.size]

    def _read(self, offset: int, out: Bytes) -> None:
        end = offset + out.size
        with self._lock:
            guesses = self._is_ahead and self._expected is None
            # Not where it ended: others may be reading between, and chunks have padding behind them.
            in_order = guesses and any(0 <= offset - last <= _GAP_BYTES for last in self._ends)
            self._ends.append(end)
            is_held = offset // BLOCK_BYTES in self._held
        least = BLOCK_BYTES
        if self._cached is not None:
            is_held = is_held or self._cached.has(offset // BLOCK_BYTES)
            least = BLOCK_BYTES // _WORTH_KEEPING
        takes_blocks = guesses or (self._is_ahead and self._cached is not None)
        if not (in_order or is_held or (takes_blocks and out.size > least)):
            out[:] = np.frombuffer(self._fetch(offset, end), np.uint8)
            return
        last = min(
            -(-end // BLOCK_BYTES) + (N_AHEAD if in_order else 0), -(-self._tail_offset // BLOCK_BYTES)
        )
        done = 0
        while done < out.size:
            number, skipped = divmod(offset + done, BLOCK_BYTES)
            n = min(BLOCK_BYTES - skipped, out.size - done)
            block = self._block(number, last)
            out[done : done + n] = np.frombuffer(block, np.uint8)[skipped : skipped + n]
            done += n

    def _range(self, begin: int, end: int) -> bytes:
        """What is expected: with a cache of its blocks, of which each may have several such ranges."""
        if self._cached is None:
            return self._fetch(begin, end)
        numbers = range(begin // BLOCK_BYTES, -(-end // BLOCK_BYTES))
        first = numbers[0] * BLOCK_BYTES
        return b"".join(self._block(n, n + 1) for n in numbers)[begin - first : end - first]

    def _block(self, number: int, last: int) -> bytes:
        """A block; those behind it are fetched too, up to `last`."""
        with self._lock:
            if self._stop.is_set():  # nobody is there any more who would fetch it
                raise ValueError("the remote file is closed")
            future = self._want(number)
            for ahead in range(number + 1, min(number + 1 + N_AHEAD, last)):
                self._want(ahead)
            self._held.move_to_end(number)
            while len(self._held) > N_HELD:
                self._held.popitem(last=False)
        return future.result()

    def _want(self, number: int) -> "Future[bytes]":
        found = self._held.get(number)
        if found is not None and not (found.done() and found.exception() is not None):
            return found
        future: Future[bytes] = Future()
        self._held[number] = future
        self._wanted.put((number, future))
        if len(self._threads) < N_CONNECTIONS:
            # Daemons: a server that keeps one waiting shall not keep the process from ending.
            thread = threading.Thread(target=self._work, name="spqfmt-remote", daemon=True)
            self._threads.append(thread)
            thread.start()
        return future

    def _work(self) -> None:
        while (wanted := self._wanted.get()) is not None:
            number, future = wanted
            try:
                future.set_result(self._whole_block(number))
            except BaseException as error:  # noqa: BLE001  # raised again by the one who reads the block
                future.set_exception(error)

    def _whole_block(self, number: int) -> bytes:
        begin = number * BLOCK_BYTES
        end = min(begin + BLOCK_BYTES, self.n_bytes)
        data = None if self._cached is None else self._cached.get(number, end - begin)
        if data is None:
            # What the tail has is not fetched again.
            middle = min(end, self._tail_offset)
            data = self._fetch(begin, middle) + self._tail[: end - middle]
            if self._cached is not None:
                self._cached.put(number, data)
        return data

    def _fetch(self, begin: int, end: int) -> bytes:
        if self._stop.is_set():
            raise RemoteError(f"{self._file.address}: closed while it was read")
        started = time.perf_counter()
        data = self._file.fetch(begin, end, self._stop)
        if len(data) < end - begin:
            raise RemoteError(f"{self._file.address}: closed while it was read")
        self._seconds += time.perf_counter() - started
        self._fetched += len(data)
        return data


def open_blocks(address: Address) -> BlocksAhead:
    """The bytes at an address. Raises RemoteError, OptionError for a kind of address that nothing reads."""
    return BlocksAhead(_open(address), Cache.of_environment())


def _open(address: Address) -> RemoteFile:
    if address.scheme in {"http", "https"}:
        from spqfmt.remote.web import WebFile

        return WebFile(address, address.url)
    if address.scheme == "hf":
        from spqfmt.remote.hub import open_hub

        return open_hub(address)
    from spqfmt.remote.file_systems import SystemFile

    return SystemFile(address)
