"""One run: which data, which coders, how many rounds."""

from collections.abc import Callable
from dataclasses import dataclass

from spqfmt.bench import machine, ours, peers
from spqfmt.bench.contender import Contender
from spqfmt.bench.data import SYNTHETIC, synthetic
from spqfmt.bench.measure import measure, thread_counts
from spqfmt.bench.report import Report
from spqfmt.bench.rows import CodecRow


@dataclass(frozen=True)
class Scale:
    """How much is measured: symbols of each data set, and rounds."""

    n_symbols: int
    rounds: int


FULL = Scale(n_symbols=1 << 24, rounds=7)
QUICK = Scale(n_symbols=1 << 21, rounds=3)


def run(scale: Scale, progress: Callable[[str], None]) -> Report:
    """Measure the built-in data sets; `progress` is told what begins. Raises BackendError if a round trip fails."""
    found = peers.find()
    makers = [_ours, *found.make.values()]
    rows: list[CodecRow] = []
    for name in SYNTHETIC:
        progress(name)
        rows += measure(synthetic(name, scale.n_symbols), makers, thread_counts(), scale.rounds)
    return Report(machine.describe(), scale.rounds, rows, [], found.missing)


def _ours(element_bytes: int, threads: int) -> list[Contender]:
    # rans codes bytes; elements that are wider reach it as planes only.
    return ours.make(threads) if element_bytes == 1 else []
