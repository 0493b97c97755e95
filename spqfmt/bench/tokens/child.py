"""The process that runs one configuration: loads it, then answers each line of stdin with a line of stdout.

python -m spqfmt.bench.tokens.child CONFIGURATION, everything in JSON. The first line out is a Loaded; a line in is a
Workload, its answer a Timed.
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spqfmt import loaders, systems
from spqfmt.bench.tokens.configurations import Configuration
from spqfmt.container.model import open_model
from spqfmt.kernels import native
from spqfmt.kernels.context import Context, using
from spqfmt.loaders.speed import Workload, seconds_per_pass
from spqfmt.residency.cpu import fetch_seconds, share_of_passes
from spqfmt.residency.plan import Plan
from spqfmt.residency.rates import Rates, measure_rates

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Loaded:
    """`weights_bytes` are held of weights; `before_bytes` was resident before. The rest is for bench.latency."""

    weights_bytes: int
    before_bytes: int
    load_ms: float
    decode_ms: float
    parts: int


@dataclass(frozen=True)
class Timed:
    """Seconds of a pass; `peak_bytes` the largest resident set meanwhile, or since the start where that is unknown."""

    seconds: float
    peak_bytes: int


def resident_bytes() -> int:
    """Resident set of this process now; its largest so far on systems that do not tell."""
    if _STATUS.exists():
        return 1024 * int(_STATUS.read_text().split("VmRSS:")[1].split()[0])
    return peak_bytes()


def forget_peak() -> None:
    """Let the largest resident set begin anew, where the system can."""
    if _CLEAR.exists():
        _CLEAR.write_text("5")


def peak_bytes() -> int:
    """The largest resident set, in bytes, since `forget_peak`."""
    if _STATUS.exists():
        return 1024 * int(_STATUS.read_text().split("VmHWM:")[1].split()[0])
    return systems.peak_memory_bytes() or 0


def load(configuration: Configuration) -> tuple[Any, Loaded]:
    """The model, and what is known of it."""
    with open_model(configuration.path) as opened:
        rates = measure_rates(opened.readers[0])
    before = resident_bytes()
    is_packed = configuration.packed or configuration.memory_bytes is not None
    with using(Context(read_rate=1.0 if configuration.keeps_all else None)):
        model, _ = loaders.load_model(
            configuration.path,
            dtype="bfloat16",
            memory=configuration.memory_bytes,
            packed=is_packed,
        )
    weights: int = sum(parameter.nbytes for parameter in model.parameters())
    if not is_packed:
        return model, Loaded(weights_bytes=weights, before_bytes=before, load_ms=0.0, decode_ms=0.0, parts=0)
    plan: Plan = model.packed_weights.plan
    load_ms, decode_ms, parts = _fetching(plan, rates)
    return model, Loaded(
        weights_bytes=plan.held_bytes, before_bytes=before, load_ms=load_ms, decode_ms=decode_ms, parts=parts
    )


def _fetching(plan: Plan, rates: Rates) -> tuple[float, float, int]:
    """Loading, decoding on all threads, and the parts that are not decoded, in a pass over one token."""
    items = [planned.item for planned in plan.parts]
    load_ms, decode_ms, parts = 0.0, 0.0, 0
    for planned in plan.parts:
        if planned.residency not in {"decoded", "narrow"}:
            share = share_of_passes(planned.item, items)
            reading, decoding = fetch_seconds(planned.item.part, planned.residency, rates)
            load_ms += 1e3 * reading * share
            decode_ms += 1e3 * decoding * share
            parts += planned.item.products
    return load_ms, decode_ms / native.usable_threads(), parts


def main() -> None:
    """Load and run what the command line says, a JSON object, and print the figures as one."""
    given = json.loads(sys.argv[1])
    model, loaded = load(Configuration(**given | {"path": Path(given["path"])}))
    _say(asdict(loaded))
    for line in sys.stdin:
        workload = Workload(**json.loads(line))
        forget_peak()
        seconds = seconds_per_pass(model, workload)
        _say(asdict(Timed(seconds, peak_bytes())))


def _say(answer: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
