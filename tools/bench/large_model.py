"""Packing, loading and running a model of some gigabytes by default, beside transformers with its BF16 weights.

    python tools/models/synthetic.py 1.5b FOLDER
    python tools/bench/large_model.py FOLDER OUT [--rounds 5]

OUT gets what is packed of FOLDER, and large_model.md: a row for each of

    pack        `spqfmt pack` of the folder, and of a file of 10,000 small tensors: seconds by the clock, start to end
    load        seconds of `load_model` (transformers: `from_pretrained`) after imports, two cores, with the files in
                the page cache and dropped from it, and the most that the process has held
    a token     milliseconds of processor time on one core, by what race_entrants.py does
    tokens/s    what `spqfmt run` says under half of what the packed weights take, two cores

Loaders take turns, round after round; medians, smallest and largest.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from race import Entry, Runner
from safetensors.torch import save_file

from spqfmt.bench.machine import describe
from spqfmt.loaders.plan import plan_model

PACKED = {
    "lossless": ("--method", "lossless"),
    "rtn, 8 bits": ("--method", "rtn", "--bits", "8"),
    "rtn, 4 bits in groups of 64": ("--method", "rtn", "--bits", "4", "--group-size", "64"),
    "ecq, 3 bits": ("--method", "ecq", "--bits", "3", "--no-calibration"),
}
LOADED = ("lossless", "rtn, 8 bits", "rtn, 4 bits in groups of 64")
TIMED = ("rtn, 8 bits", "rtn, 4 bits in groups of 64", "ecq, 3 bits")
TIMED_PACKS = ("lossless", "rtn, 8 bits")
TOKENS = 8
N_SMALL = 10_000


def spqfmt(*arguments: str) -> str:
    """What the command says on stderr; its process ends this one where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "spqfmt", *arguments],
        check=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    return done.stderr.decode()


def packing(folder: Path, out: Path, rounds: int) -> Iterator[tuple[str, list[float]]]:
    """Pack all, and time it where it is done once in each round."""
    small = out / "small.safetensors"
    save_file({f"t{n:05}": torch.full((32, 64), n / N_SMALL) for n in range(N_SMALL)}, small)
    timed = [
        (name, folder, options, rounds if name in TIMED_PACKS else 1) for name, options in PACKED.items()
    ]
    timed.append((f"lossless, {N_SMALL:,} tensors", small, PACKED["lossless"], rounds))
    for name, source, options, n in timed:
        seconds = []
        for _ in range(n):
            started = time.perf_counter()
            spqfmt("pack", "--quiet", "--force", *options, str(source), str(path_of(out, name)))
            seconds.append(time.perf_counter() - started)
        yield name, seconds


def path_of(out: Path, name: str) -> Path:
    """Return where a packed file lies."""
    return out / f"{re.sub('[^a-z0-9]+', '-', name)}.spq"


def drop(path: Path) -> None:
    """Leave nothing of a file, or of a folder's, in the page cache."""
    os.sync()
    for file in path.iterdir() if path.is_dir() else (path,):
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def loading(folder: Path, out: Path, rounds: int) -> Iterator[tuple[str, str, list[float], float]]:
    """Names, warm or cold, seconds of each round, and the most bytes that the process has held."""
    entrants = [(name, "spqfmt", path_of(out, name)) for name in LOADED]
    entrants.append(("transformers, BF16", "transformers", folder))
    for cache in ("cold", "warm"):
        seconds: dict[str, list[float]] = {name: [] for name, *_ in entrants}
        held = dict.fromkeys(seconds, 0.0)
        for _ in range(rounds):
            for name, kind, path in entrants:
                if cache == "cold":
                    drop(path)
                runner = Runner(Entry(name, kind, str(path), 2), sys.executable)
                seconds[name].append(runner.entry.load_s)
                held[name] = max(held[name], runner.ask("memory"))
                runner.close()
        yield from ((name, cache, seconds[name], held[name]) for name in seconds)


def tokens(folder: Path, out: Path, rounds: int) -> Iterator[tuple[str, list[float]]]:
    """Names, and milliseconds of processor time a token."""
    entries = [Entry(name, "spqfmt", str(path_of(out, name)), 1) for name in TIMED]
    entries.append(Entry("transformers, BF16", "transformers", str(folder), 1))
    runners = [Runner(entry, sys.executable) for entry in entries]
    found: dict[str, list[float]] = {entry.name: [] for entry in entries}
    for number in range(rounds + 1):
        for runner in runners:
            rate = runner.ask(f"processor-tokens {TOKENS}")
            if number:  # the first round warms up
                found[runner.entry.name].append(1000 / rate)
    for runner in runners:
        runner.close()
    yield from found.items()


def under_ceiling(file: Path, rounds: int) -> tuple[int, list[float]]:
    """The ceiling in bytes, and tokens a second under it."""
    ceiling = plan_model(file).plan.held_bytes // 2
    rates = []
    for _ in range(rounds):
        said = spqfmt(
            "run", str(file), "--prompt", "x", "--raw", "--max-new-tokens", str(4 * TOKENS), "--memory", str(ceiling)
        )  # fmt: skip
        rates.append(float(re.findall(r"at ([0-9.]+) tokens/s", said)[-1]))
    return ceiling, rates


def shown(values: Sequence[float], digits: int = 1) -> str:
    """Median, smallest and largest."""
    middle, low, high = (
        f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values))
    )
    return f"{middle} ({low} to {high})" if len(values) > 1 else middle


def main() -> None:
    """Run the tool, whose help is the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    machine = describe()
    lines = ["| | | figure |", "|---|---|---|"]

    def add(*cells: str) -> None:
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], flush=True)

    for name, seconds in packing(given.folder, given.out, given.rounds):
        add("pack, s", name, shown(seconds))
    for name, cache, seconds, held in loading(given.folder, given.out, given.rounds):
        add(f"load, {cache}, s", name, f"{shown(seconds)}, {held / 2**20:,.0f} MiB")
    for name, milliseconds in tokens(given.folder, given.out, given.rounds):
        add("a token, ms, one core", name, shown(milliseconds))
    ceiling, rates = under_ceiling(path_of(given.out, "rtn, 8 bits"), given.rounds)
    add("tokens/s", f"rtn, 8 bits, under {ceiling / 2**20:,.0f} MiB", shown(rates, 2))
    lines += [
        "",
        f"{machine['processor']}, {machine['threads']} cores, load before {machine['load_average']}; medians of "
        f"{given.rounds} rounds (smallest and largest); what stands alone was done once. "
        "By `python tools/bench/large_model.py`.",
    ]
    (given.out / "large_model.md").write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
