"""Interleaved rounds over the processes of all configurations."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from spqfmt.bench.latency import Latency
from spqfmt.bench.rows import Rate, RunRow
from spqfmt.bench.tokens.child import Loaded, Timed
from spqfmt.bench.tokens.configurations import Configuration, configurations
from spqfmt.errors import BackendError
from spqfmt.loaders.speed import Workload

_STEPS = 16
FULL = (
    Workload("batch 1", 1, steps=_STEPS),
    Workload("batch 8", 8, steps=_STEPS),
    Workload("prompt 512", 1, prompt_tokens=512),
)


class _Child:
    """A configuration, its process, and what was measured."""

    def __init__(self, configuration: Configuration) -> None:
        self.name = configuration.name
        given = asdict(configuration) | {"path": str(configuration.path)}
        command = [sys.executable, "-m", "spqfmt.bench.tokens.child", json.dumps(given)]
        # A file, not a pipe: nobody empties it while the process runs.
        self._complaints = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed with the process
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
            env=os.environ | {"PYTHONWARNINGS": "ignore"},
        )
        self.timed: dict[Workload, list[Timed]] = {}
        try:
            self.loaded = Loaded(**self._answer())
        except BaseException:
            self.close()
            raise

    def time(self, workload: Workload) -> Timed:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(workload)) + "\n")
        self._process.stdin.flush()
        return Timed(**self._answer())

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._complaints.seek(0)
            words = self._complaints.read().strip().splitlines()
            raise BackendError(f"{self.name}: {words[-1] if words else 'its process ended'}")
        return json.loads(line)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._complaints.close()


@contextmanager
def _children(wanted: Sequence[Configuration], told: Callable[[str], None]) -> Iterator[list[_Child]]:
    with ExitStack() as stack:
        children = []
        for configuration in wanted:
            told(f"run: loading {configuration.name}")
            children.append(_Child(configuration))
            stack.callback(children[-1].close)
        yield children


def measure_runs(
    file: Path,
    folder: Path,
    *,
    rounds: int,
    told: Callable[[str], None],
    workloads: Sequence[Workload] = FULL,
) -> list[RunRow]:
    """Tokens a second and memory of `file` in every configuration; other files that they need go into `folder`.

    All configurations are loaded at once, each in a process of its own, and take turns: memory for all is needed.
    Raises BackendError where a process fails, and what reading `file` raises.
    """
    with _children(list(configurations(file, folder, told)), told) as children:
        for workload in workloads:
            for child in children:
                child.time(workload)  # buffers and caches of the first time
                child.timed[workload] = []
            for number in range(rounds):
                told(f"run: {workload.name}, round {number + 1} of {rounds}")
                for child in children:
                    child.timed[workload].append(child.time(workload))
    return [_row(file.name, child, workload, children[1]) for workload in workloads for child in children]


def _row(data: str, child: _Child, workload: Workload, decoded: _Child) -> RunRow:
    timed, loaded = child.timed[workload], child.loaded
    tokens = workload.batch * max(1, workload.prompt_tokens)
    computing = statistics.median(t.seconds for t in decoded.timed[workload])
    peak = max(t.peak_bytes for t in timed)
    latency = None
    if child.name != "BF16 transformers":
        latency = Latency(loaded.load_ms, loaded.decode_ms, 1e3 * computing, loaded.parts)
    return RunRow(
        data=data,
        configuration=child.name,
        workload=workload.name,
        rate=Rate.of(1_000_000 * tokens, [t.seconds for t in timed]),
        peak_bytes=peak,
        memory_bytes=peak - loaded.before_bytes,
        weights_bytes=loaded.weights_bytes,
        serial_tokens_s=None if latency is None else 1e3 * tokens / latency.serial_ms,
        overlapped_tokens_s=None if latency is None else 1e3 * tokens / latency.overlapped_ms,
        latency=latency,
    )
