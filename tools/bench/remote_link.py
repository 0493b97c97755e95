"""What reading over a link takes: `spqfmt inspect` of many tensors, and the first token of a model under a ceiling.

    python tools/bench/remote_link.py [MODEL.spq --memory 60MiB] [--milliseconds 50] [--megabits 100] [--rounds 5]

A server on the loopback address answers each request after the time that a link takes there and back, as it does for
each new connection, and sends as many bits a second as the link, to all connections together. Of `inspect` the fastest
round is shown, here and there, with the processor's seconds, which tell what a busy machine adds. `run` has its first
text, one token's, when it comes out of the command; beside it stand its seconds from a disk, the bytes that were sent
by then, and the seconds that the link takes for all of the file. SPQFMT_CACHE counts, and is emptied before a round.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from remote_server import Site, serving
from time_inspect import make_file

COMMAND = [sys.executable, "-P", "-c", "from spqfmt.cli.main import main; main()"]
_INSPECT = """
import sys, time, spqfmt
spqfmt.inspect(sys.argv[1])  # what is imported on the way
wall, work = time.perf_counter(), time.process_time()
spqfmt.inspect(sys.argv[2])
print(time.perf_counter() - wall, time.process_time() - work)
"""


class Taken(NamedTuple):
    """Seconds by the clock, and the processor's."""

    wall: float
    work: float


def of_command(path: str, _: str) -> Taken:
    """Seconds of `spqfmt inspect`, Python's start included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run([*COMMAND, "inspect", path], check=True, capture_output=True)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Taken(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def of_library(path: str, small: str) -> Taken:
    """Seconds of `spqfmt.inspect` in a new process that has inspected a small file."""
    command = [sys.executable, "-P", "-c", _INSPECT, small, path]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return Taken(*map(float, said.split()))


def seconds_to_text(path: str, memory: str, site: Site) -> tuple[float, int]:
    """Seconds from a command's start to its first text, and the bytes that were sent by then."""
    command = [
        *COMMAND,
        "run",
        path,
        "--prompt",
        "Why?",
        "--max-new-tokens",
        "1",
        "--memory",
        memory,
        "--quiet",
    ]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        if not process.stdout.read(1):
            raise SystemExit("no text came")
        found = time.perf_counter() - start, site.sent_bytes
        process.stdout.read()
    return found


def inspect_rates(site: Site, rounds: int) -> None:
    """Print a row for the library and one for the command, the fastest round of each."""
    print("| | here, s | processor's | over the link, s | processor's | requests | bytes |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for what, measured in (("`spqfmt.inspect`", of_library), ("`spqfmt inspect`", of_command)):
        near, far = [], []
        for _ in range(rounds):
            near.append(measured(str(site.folder / "many.spq"), str(site.folder / "few.spq")))
            site.requests.clear()
            site.sent_bytes = 0
            far.append(measured(f"{site.url}/many.spq", str(site.folder / "few.spq")))
        cells = [f"{value:.2f}" for taken in (min(near), min(far)) for value in taken]
        print(f"| {what} | {' | '.join(cells)} | {len(site.requests)} | {site.sent_bytes:,} |", flush=True)


def first_token(site: Site, name: str, memory: str, rounds: int) -> None:
    """Print when the first token came, and what was sent by then."""
    size = (site.folder / name).stat().st_size
    near, far, sent = [], [], []
    for _ in range(rounds):
        near.append(seconds_to_text(str(site.folder / name), memory, site)[0])
        site.sent_bytes = 0
        if cache := os.environ.get("SPQFMT_CACHE"):
            shutil.rmtree(cache, ignore_errors=True)
        seconds, n_bytes = seconds_to_text(f"{site.url}/{name}", memory, site)
        far.append(seconds)
        sent.append(n_bytes)
    whole = size / site.bytes_per_second
    print(
        f"first text of `run --memory {memory}` over the link: {_spread(far, '.1f')} s; here {_spread(near, '.1f')} s"
    )
    print(f"bytes sent by then: {_spread(sent, ',')}")
    print(f"the file: {size:,} bytes, which take {whole:.1f} s")


def _spread(values: Sequence[float], form: str) -> str:
    """The median, with the least and the most behind it."""
    return f"{statistics.median_low(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def main() -> None:
    """Run the tool, whose help is the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--memory", default="60MiB")
    parser.add_argument("--milliseconds", type=float, default=50)
    parser.add_argument("--megabits", type=float, default=100)
    parser.add_argument("--tensors", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as site:
        make_file(site.folder / "many.spq", given.tensors, 32)
        make_file(site.folder / "few.spq", 1, 1)
        site.delay, site.is_fixed = given.milliseconds / 1e3, True
        site.bytes_per_second = given.megabits * 1e6 / 8
        print(f"{given.tensors} tensors, {(site.folder / 'many.spq').stat().st_size:,} bytes")
        inspect_rates(site, given.rounds)
        if given.file is not None:
            (site.folder / "model.spq").symlink_to(given.file.resolve())
            first_token(site, "model.spq", given.memory, given.rounds)


if __name__ == "__main__":
    main()
