"""How fast a machine decodes chunks: measured in some 50 ms, or named by a file."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from spqfmt.codecs.base import Bytes, Codec
from spqfmt.codecs.raw import CODEC as RAW
from spqfmt.codecs.registry import CODECS, CODECS_BY_ID
from spqfmt.container.planes import decode_jobs
from spqfmt.container.strict_json import Json
from spqfmt.errors import OptionError
from spqfmt.kernels import backend, native
from spqfmt.kernels.context import Backend
from spqfmt.stand_ins import given_path, no_file

_LARGE_BYTES, _SMALL_BYTES = 1 << 20, 1 << 14
_ROUNDS = 9
_MAX_FILE_BYTES = 16 << 20
_MAKES_ONE = "`spqfmt bench --rates` prints the decode rates of a machine"


class CodecRate(NamedTuple):
    """Time of one chunk plane: `chunk_ns` nanoseconds, and its raw bytes at `bytes_per_s`. On one thread."""

    bytes_per_s: int
    chunk_ns: int


@dataclass(frozen=True)
class DecodeRates:
    """Rates of the codecs that decode, by name. The entropy of the codes, worth a fifth of them, is left out (decision
    0016)."""

    codecs: Mapping[str, CodecRate]

    def decode_ns(self, codec: int, raw_bytes: int) -> float:
        """Nanoseconds to check and decode one chunk plane; none for a raw one, which is read to where it is used.

        A codec that the rates do not name counts as the slowest that they do.
        """
        if codec == RAW.id or not raw_bytes:
            return 0.0
        rate = self.codecs.get(CODECS_BY_ID[codec].name) or min(self.codecs.values())
        return rate.chunk_ns + 1e9 * raw_bytes / rate.bytes_per_s

    def to_json(self) -> Json:
        """Return the rates as a file's index stores them, and as `read_rates` takes them."""
        return {name: rate._asdict() for name, rate in self.codecs.items()}


def read_rates(path: str | Path) -> DecodeRates:
    """Rates from a JSON file: what `spqfmt bench --rates` prints, or `inspect --json` of a file that holds some.

    Raises OptionError for a file that is something else, OSError as it is.
    """
    path = given_path(path)
    if instead := no_file(path):
        raise OptionError(f"{path}: {instead}")
    with path.open("rb") as file:
        text = file.read(_MAX_FILE_BYTES + 1)
    if len(text) > _MAX_FILE_BYTES:
        raise OptionError(
            f"{path}: larger than {_MAX_FILE_BYTES >> 20} MiB; {_MAKES_ONE}. Of a longer `inspect --json`, give the "
            "partial_plan alone"
        )
    try:
        found: object = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    for key in ("partial_plan", "rates"):
        if isinstance(found, dict) and key in found:
            found = found[key]
    rates = parse_rates(found)
    if rates is None:
        if isinstance(found, dict) and "host_decode" in found:
            raise OptionError(f"{path}: rates of a device, for `spqfmt plan --device-rates`; {_MAKES_ONE}")
        raise OptionError(f"{path}: no decode rates in it; {_MAKES_ONE}")
    return rates


def parse_rates(found: object) -> DecodeRates | None:
    """Rates from plain data; None when it holds none, or one that makes no sense."""
    if not isinstance(found, Mapping):
        return None
    rates = {name: _parse_rate(found[name]) for name in _decoding() if name in found}
    sound = {name: rate for name, rate in rates.items() if rate is not None}
    return DecodeRates(sound) if sound and len(sound) == len(rates) else None


def _decoding() -> list[str]:
    """Names of the codecs that decode at all."""
    return [name for name in CODECS if name != RAW.name]


def _parse_rate(found: object) -> CodecRate | None:
    if not isinstance(found, Mapping):
        return None
    bytes_per_s, chunk_ns = (found.get(name) for name in CodecRate._fields)
    if type(bytes_per_s) is not int or type(chunk_ns) is not int:
        return None
    limit = 2**53 - 1  # of integers in an index (FORMAT.md 3)
    sound = 1 <= bytes_per_s <= limit and 0 <= chunk_ns <= limit
    return CodecRate(bytes_per_s, chunk_ns) if sound else None


def measure_decode_rates() -> DecodeRates:
    """Measure this machine and backend, on INT8 codes of a normal distribution; once in a process.

    Three digits are kept: the rest is noise, and the rates are stored in the file whose chunks they chose.
    """
    return _measure(backend.current())


@cache
def _measure(_: Backend) -> DecodeRates:
    codes = np.random.default_rng(0).normal(0, 25, _LARGE_BYTES).clip(-127, 127).astype(np.int8)
    symbols = codes.view(np.uint8)
    out = np.empty_like(symbols)

    def rate(codec: Codec) -> CodecRate:
        seconds = []
        for n in (_SMALL_BYTES, _LARGE_BYTES):
            stored = np.frombuffer(codec.encode(symbols[:n]), np.uint8)
            job = np.array([[0, stored.size, codec.id, native.crc32(stored), 0, n]], np.int64)
            seconds.append(_seconds(stored, job, out[:n]))
        small, large = seconds
        a_byte = max(large - small, 1e-9) / (_LARGE_BYTES - _SMALL_BYTES)
        return CodecRate(_rounded(1 / a_byte), _rounded(max(0.0, 1e9 * (small - _SMALL_BYTES * a_byte))))

    return DecodeRates({name: rate(CODECS[name]) for name in _decoding()})


def _seconds(stored: Bytes, job: NDArray[np.int64], out: Bytes) -> float:
    best = float("inf")
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        decode_jobs(stored, job, out, checked=False)
        best = min(best, time.perf_counter() - started)
    return best


def _rounded(value: float) -> int:
    return int(float(f"{value:.2e}"))
