"""How fast this machine reads, decodes and computes: measured in some 100 ms, once in a process for each backend."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from spqfmt.codecs.registry import CODECS, CODECS_BY_ID
from spqfmt.container.reader import Reader
from spqfmt.kernels import backend, native
from spqfmt.kernels.context import Backend, current
from spqfmt.kernels.multiply import NO_BIAS, CodeMatrix, Floats
from spqfmt.residency.decode_rates import measure_decode_rates

_SAMPLE_BYTES = 1 << 20
_READ_BYTES = 8 << 20
_ROUNDS = 3


@dataclass(frozen=True)
class Rates:
    """Bytes a second: read from the file, decoded (raw bytes) with a checksum; weights a second at one token.

    All on one thread.
    """

    read: float
    compute: float
    codecs: Mapping[str, float]
    """Rates by the codec's name; of raw chunks it is the rate of copying."""

    def decode(self, codec: int) -> float:
        """Raw bytes a second of a codec."""
        return self.codecs[CODECS_BY_ID[codec].name]


UNMEASURED = Rates(math.inf, math.inf, dict.fromkeys(CODECS, math.inf))
"""For plans in which rates decide nothing: everything takes no time."""


def measure_rates(reader: Reader) -> Rates:
    """Rates of this machine, and of the disk that the open file lies on, unless the context says how fast that is."""
    copy, compute = _processor(backend.current())
    measured = measure_decode_rates()
    codecs = {name: copy for name in CODECS if name not in measured.codecs}
    codecs |= {
        name: 1e9 * _SAMPLE_BYTES / measured.decode_ns(CODECS[name].id, _SAMPLE_BYTES)
        for name in measured.codecs
    }
    return Rates(current().read_rate or _read(reader), compute, codecs)


@cache
def _processor(_: Backend) -> tuple[float, float]:
    """Rates of copying and computing, on codes of a normal distribution as INT8 layers have them."""
    codes = (
        np.random.default_rng(0).normal(0, 25, _SAMPLE_BYTES).clip(-127, 127).astype(np.int8).view(np.uint8)
    )
    out = np.empty_like(codes)
    columns = 1024
    rows = codes.size // columns
    matrix = CodeMatrix((rows, columns), "i8", row=np.ones(rows, np.float32))
    x, y = np.ones(columns, np.float32), np.empty(rows, np.float32)
    x_there, y_there = Floats.of(x, "f32"), Floats.of(y, "f32").address

    def copy() -> None:
        native.crc32(codes)
        out[:] = codes

    def compute() -> None:
        matrix.multiply(codes, 0, rows, *x_there, 1, y_there, *NO_BIAS, 1)

    return codes.size / _seconds(copy), codes.size / _seconds(compute)


def _seconds(run: Callable[[], object]) -> float:
    run()
    best = float("inf")
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - started)
    return max(best, 1e-9)


_read_rates: dict[Path, float] = {}
"""Rates that were measured, once for each path."""


def _read(reader: Reader) -> float:
    """Read as parts are read: into memory that is reused, past the page cache where the system lets one."""
    if reader.remote is not None:
        return reader.remote.rate
    if reader.path not in _read_rates:
        buffer = np.empty(min(_SAMPLE_BYTES, reader.file_bytes), np.uint8)
        n_reads = max(1, min(_READ_BYTES, reader.file_bytes) // buffer.size)
        reader.forget(0, n_reads * buffer.size)
        started = time.perf_counter()
        for number in range(n_reads):
            reader.read_into(number * buffer.size, buffer)
        _read_rates[reader.path] = n_reads * buffer.size / max(time.perf_counter() - started, 1e-9)
        reader.forget(0, n_reads * buffer.size)
    return _read_rates[reader.path]
