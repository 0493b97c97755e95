"""What a run measures, line by line."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from spqfmt.bench.latency import Latency


@dataclass(frozen=True)
class Rate:
    """Million symbols a second: the median over the rounds, the slowest and the fastest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, n_symbols: int, seconds: Sequence[float]) -> "Rate":
        """The rate of `n_symbols` in each of `seconds`."""
        million = n_symbols / 1e6
        return cls(million / statistics.median(seconds), million / max(seconds), million / min(seconds))


@dataclass(frozen=True)
class CodecRow:
    """One coder on one data set, in memory."""

    data: str
    codec: str
    path: str
    block_bytes: int
    threads: int
    layout: str
    encode: Rate
    decode: Rate
    bits_per_symbol: float
    entropy: float


@dataclass(frozen=True)
class LoadRow:
    """One file format from the file to decoded memory. `cache`: cold (dropped from the page cache before) or warm."""

    data: str
    container: str
    cache: str
    threads: int
    file_bytes: int
    load: Rate


@dataclass(frozen=True)
class RunRow:
    """A model in one configuration on one workload. `rate` is tokens a second.

    `peak_bytes`: largest resident set of its process; `memory_bytes`: that, less what was resident before the model was
    loaded; `weights_bytes`: what is held of weights. The expected rates are the latency model's, None for `rate` of
    BF16 transformers.
    """

    data: str
    configuration: str
    workload: str
    rate: Rate
    peak_bytes: int
    memory_bytes: int
    weights_bytes: int
    serial_tokens_s: float | None
    overlapped_tokens_s: float | None
    latency: Latency | None
