"""spqfmt as it is by default beside its peers, on one model: one table, for the README.

    python tools/bench/race.py MODEL.gguf OUT_DIR                        SmolLM2's is that of tools/models/smollm2.py
    python tools/bench/race.py MODEL_FOLDER OUT_DIR --gguf MODEL.gguf    --rounds 7 --prompt 512 --tokens 64
    python tools/bench/race.py MODEL.gguf OUT_DIR --entrants codes,llama.cpp   these alone; by default all
    python tools/bench/race.py ... --processor    tokens a second of processor time, for a machine that is busy

Entrants: what `spqfmt run` does without options with the codes of the GGUF file as they are (pack's default), with
8-bit codes and with 4-bit groups of 64 that it made itself; transformers with BF16 weights; torch's dynamic INT8; and
llama.cpp with the GGUF file, where its Python has the package xllamacpp. Each is a process of its own for one core
and one for two; they take turns, round after round. Medians, and the slowest and the fastest round. Loading is what
the process does after its imports, once a process. Memory is the most that the process has held, libraries included.

OUT_DIR gets the packed files, race.json, race.md and, with matplotlib, race.png.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import spqfmt
from spqfmt.bench.machine import describe
from spqfmt.pages.palette import SERIES
from spqfmt.pages.png_style import new_figure, save, style

_ENTRANTS = Path(__file__).with_name("race_entrants.py")
ENTRANTS = ("codes", "8-bit", "4-bit", "transformers", "dynamic", "llama.cpp")
MEASURES = {
    "prompt": "prompt, tokens/s",
    "tokens": "generation, tokens/s",
    "processor-tokens": "generation, tokens/s of processor time",
}


@dataclass
class Entry:
    """An entrant on so many cores, and what it has done: seconds, tokens a second, bytes."""

    name: str
    kind: str
    path: str
    cores: int
    load_s: float = 0.0
    memory_bytes: float = 0.0
    rates: dict[str, list[float]] = field(default_factory=dict)


class Runner:
    """The process of an entry."""

    def __init__(self, entry: Entry, python: str) -> None:
        self.entry = entry
        # A file, not a pipe: nobody empties it while the process runs.
        self._complaints = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed with the process
        threads = {"OMP_NUM_THREADS": str(entry.cores), "SPQFMT_THREADS": str(entry.cores)}
        self._process = subprocess.Popen(
            [python, str(_ENTRANTS), entry.kind, entry.path, str(entry.cores)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
            env=os.environ | threads,
        )
        try:
            entry.load_s = self._line()["load_s"]
        except RuntimeError:
            self.close()
            raise

    def _line(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._complaints.seek(0)
            words = self._complaints.read().strip().splitlines()
            raise RuntimeError(f"{self.entry.name} has ended: {words[-1] if words else 'it said nothing'}")
        return json.loads(line)

    def ask(self, question: str) -> float:
        """Its answer to a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(question + "\n")
        self._process.stdin.flush()
        return float(self._line())

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.communicate()
        self._complaints.close()


def entries(
    source: Path, gguf: Path | None, out: Path, cores: Sequence[int], kinds: Collection[str] = ENTRANTS
) -> list[Entry]:
    """Pack what is not there yet, and name all of these kinds that take part."""
    folder = source
    if source.is_file() and {"transformers", "dynamic"} & set(kinds):
        folder = out / "bf16"
        if not folder.exists():
            floats = out / "floats.spq"
            spqfmt.pack(source, floats, method="lossless", dequantize=True, force=True)
            spqfmt.unpack(floats, folder, as_="dense")
            floats.unlink()
    files: dict[str, dict[str, Any]] = {}
    if gguf is not None and "codes" in kinds:
        files[f"spqfmt, codes of {gguf.name}"] = {"method": "keep"}
    if "8-bit" in kinds:
        files["spqfmt, 8-bit codes"] = {"dequantize": True, "method": "rtn", "bits": 8}
    if "4-bit" in kinds:
        groups = {"dequantize": True, "method": "rtn", "bits": 4, "group_size": 64}
        files["spqfmt, 4-bit groups of 64"] = groups
    found = []
    for name, options in files.items():
        path = out / f"{'-'.join(str(value) for key, value in options.items() if key != 'dequantize')}.spq"
        if not path.exists():
            spqfmt.pack(gguf if gguf is not None and options["method"] == "keep" else source, path, **options)
        found.append((name, "spqfmt", path))
    neighbours = {"transformers": "transformers, BF16", "dynamic": "torch, dynamic INT8"}
    found += [(name, kind, folder) for kind, name in neighbours.items() if kind in kinds]
    if gguf is not None and "llama.cpp" in kinds:
        found.append((f"llama.cpp, {gguf.name}", "llama.cpp", gguf))
    return [Entry(name, kind, str(path), n) for n in cores for name, kind, path in found]


def race(
    wanted: Sequence[Entry], pythons: dict[str, str], lengths: dict[str, int], rounds: int
) -> list[Entry]:
    """Let all take turns; those that cannot start, or end, are named on stderr and left out."""
    runners = []
    try:
        for entry in wanted:
            try:
                runners.append(Runner(entry, pythons.get(entry.kind, sys.executable)))
            except RuntimeError as error:
                print(f"{error}: left out", file=sys.stderr)
        for number in range(rounds + 1):
            for runner in list(runners):
                try:
                    rates = {
                        measure: runner.ask(f"{measure} {length}") for measure, length in lengths.items()
                    }
                except RuntimeError as error:
                    print(f"{error}: left out", file=sys.stderr)
                    runners.remove(runner)
                    runner.close()
                    continue
                for measure, rate in rates.items() if number else ():  # the first round warms up
                    runner.entry.rates.setdefault(measure, []).append(rate)
            print(f"round {number} of {rounds}", file=sys.stderr)
        for runner in runners:
            runner.entry.memory_bytes = runner.ask("memory")
    finally:
        for runner in runners:
            runner.close()
    return [runner.entry for runner in runners]


def table(ran: Sequence[Entry], lengths: dict[str, int], rounds: int) -> str:
    """Markdown: a row for each entry, and what was measured on which machine."""
    machine = describe()
    columns = " | ".join(MEASURES[measure] for measure in lengths)
    lines = [f"| cores | | {columns} | load, s | memory, MiB |", f"|---|{'---|' * len(lengths)}---|---|---|"]
    for entry in ran:
        rates = " | ".join(_shown(entry.rates[measure]) for measure in lengths)
        memory = f"{entry.memory_bytes / 2**20:.0f}"
        lines.append(f"| {entry.cores} | {entry.name} | {rates} | {entry.load_s:.1f} | {memory} |")
    lines += [
        "",
        f"{machine['processor']}, {machine['threads']} cores, load before {machine['load_average']}; "
        f"{', '.join(f'{measure} {length}' for measure, length in lengths.items())}; medians of {rounds} interleaved "
        f"rounds, slowest and fastest in brackets. By `python tools/bench/race.py`.",
    ]
    return "\n".join(lines) + "\n"


def _shown(rates: Sequence[float]) -> str:
    digits = 0 if statistics.median(rates) >= 100 else 1
    middle, low, high = (f"{rate:.{digits}f}" for rate in (statistics.median(rates), min(rates), max(rates)))
    return f"{middle} ({low} to {high})"


def plot(ran: Sequence[Entry], file: Path) -> None:
    """Draw bars of tokens a second, a panel for each measure and number of cores. OptionError without matplotlib."""
    names = list(dict.fromkeys(entry.name for entry in ran))
    panels = [(measure, n) for n in sorted({entry.cores for entry in ran}) for measure in ran[0].rates]
    with style():
        figure, axes = new_figure(height=3.0, columns=len(panels))
        for axis, (measure, n) in zip(axes, panels, strict=True):
            for entry in (entry for entry in ran if entry.cores == n):
                place, rates = -names.index(entry.name), entry.rates[measure]
                middle = statistics.median(rates)
                spread = [[middle - min(rates)], [max(rates) - middle]]
                color = SERIES[names.index(entry.name) % len(SERIES)]
                axis.barh([place], [middle], xerr=spread, color=color, label=entry.name)
            axis.set(
                title=f"{MEASURES[measure].partition(',')[0]}, {n} core{'s' * (n > 1)}",
                xlabel="tokens/s",
                yticks=[],
            )
        handles = dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=True))
        figure.legend(handles=[handles[name] for name in names], loc="outside lower center", ncols=2)
        save(figure, file)


def main() -> None:
    """Run the tool, whose help is the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--gguf", type=Path, help="for llama.cpp; by default SOURCE where that is one")
    parser.add_argument("--entrants", default=",".join(ENTRANTS), help=f"some of {', '.join(ENTRANTS)}")
    parser.add_argument("--cores", default="1,2")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--processor", action="store_true")
    parser.add_argument(
        "--llama-python", default=sys.executable, help="an interpreter that has xllamacpp, where this has not"
    )
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    gguf = given.gguf or (given.source if given.source.suffix == ".gguf" else None)
    lengths = {"prompt": given.prompt, "tokens": given.tokens}
    if given.processor:
        lengths = {"processor-tokens": given.tokens}
    kinds = given.entrants.split(",")
    if unknown := set(kinds) - set(ENTRANTS):
        parser.error(f"no entrant {', '.join(sorted(unknown))}")
    wanted = entries(given.source, gguf, given.out, [int(n) for n in given.cores.split(",")], kinds=kinds)
    ran = race(wanted, {"llama.cpp": given.llama_python}, lengths, given.rounds)
    report = {"machine": describe(), "lengths": lengths, "entries": [asdict(entry) for entry in ran]}
    (given.out / "race.json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    text = table(ran, lengths, given.rounds)
    (given.out / "race.md").write_text(text, "utf-8")
    print(text, end="")
    plot(ran, given.out / "race.png")


if __name__ == "__main__":
    main()
