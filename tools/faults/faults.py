"""Faults on real commands, and what was seen: makes docs/reliability.md.

    python tools/faults/faults.py OUT.md [--trials 20] [--seed 0] [--only signals ...]

A small model is packed, and each command runs in forked children with faults at random places: reads that fail, are
short or slow, a disk that fills, signals, two writers of one name, files that change under a running model, models in
forked and spawned children, limits of the system, flipped bits. Each row counts how the trials ended; what must not
happen is in capitals, and the exit code is then 1. Needs Linux, a C compiler (for shim.c), and what `make test`
installs.
"""

import argparse
import importlib
import os
import random
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from checking import in_words, shares
from commands import Fault, command, in_child, last_line, left_over, preload, start, wait
from flips import flips
from place import Place, Row
from running import in_other_processes, loads, under_a_running_model

HERE = Path(__file__).resolve().parent


def reads(place: Place, trials: int) -> Iterator[Row]:
    """Reads that fail, are short or slow."""
    commands = place.readers() | {
        "repack": place.writers()["repack"],
        "pack --method rtn": place.writers()["pack --method rtn"],
    }
    for kind, most in (("eio", 40), ("short", 5000), ("slow", 3)):
        for name, words in commands.items():
            seen: Counter[str] = Counter()
            for _ in range(trials if kind == "eio" else max(trials // 4, 1)):
                place.empty()
                part = str(place.source) if name.startswith("pack") else str(place.file)
                at = str(place.random.randint(0 if kind == "eio" else 1, most))
                fault = Fault({"FAULT_PATH": part, "FAULT_KIND": kind, "FAULT_AT": at})
                ended = in_child(command(*words), fault, place.log)
                left = left_over(place.out, ["m.spq"] if not ended.code else [])
                wrong = ", LEFT a file" if left else ""
                seen[("WRONG: " if kind != "eio" and ended.code else "") + ended.in_words + wrong] += 1
            yield Row(f"reads: {kind}", name, seen)


def disks(place: Place, trials: int) -> Iterator[Row]:
    """A disk that fills, and a file that may not grow, at a random byte."""
    for name, words in place.writers().items():
        for kind in ("disk full", "RLIMIT_FSIZE"):
            seen: Counter[str] = Counter()
            for _ in range(max(trials // 2, 1)):
                place.empty()
                at = int(2 ** place.random.uniform(4, 18))
                environment = {"FAULT_PATH": str(place.out), "FAULT_KIND": "full", "FAULT_AT": str(at)}
                fault = (
                    Fault(environment) if kind == "disk full" else Fault(limits={resource.RLIMIT_FSIZE: at})
                )
                ended = in_child(command(*words), fault, place.log)
                seen[f"{ended.in_words}, {place.aftermath(ended)}"] += 1
            yield Row(kind, name, seen)


_DRAWS = 5
"""How often a moment is drawn again where the command had ended before."""


def signals(place: Place, trials: int) -> Iterator[Row]:
    """SIGKILL, SIGINT and SIGTERM at random moments; after SIGKILL the same command has to go well and clear up."""
    for name, words in place.writers().items():
        place.empty()
        usual = place.ends_well(*words).seconds
        for number, title in (
            (signal.SIGKILL, "kill -9"),
            (signal.SIGINT, "SIGINT"),
            (signal.SIGTERM, "SIGTERM"),
        ):
            seen: Counter[str] = Counter()
            for _ in range(2 * trials if number == signal.SIGKILL else max(trials // 2, 1)):
                for _ in range(_DRAWS):
                    place.empty()
                    fault = Fault(signal=number, after=place.random.uniform(0, usual))
                    ended = in_child(command(*words), fault, place.log)
                    if ended.code:
                        break
                    usual = ended.seconds  # the signal came too late: the machine has become faster
                if number != signal.SIGKILL:
                    seen[f"{ended.in_words}, {place.aftermath(ended)}"] += 1
                    continue
                wrong = "" if place.is_whole() else ", a BROKEN file under its name"
                if name == "unpack" and (place.out / "model").exists():
                    shutil.rmtree(place.out / "model")
                more = ["--resume"] if (place.out / "m.spq.resume").exists() else []
                again = in_child(command(*words, *more), Fault(), place.log)
                if "nothing to resume" in again.said:  # it was killed before its first block
                    again = in_child(command(*words), Fault(), place.log)
                hidden = [left for left in left_over(place.out, []) if left.startswith(".")]
                wrong += f", LEFT {len(hidden)}" if hidden else ""
                wrong += f", the next one FAILED ({again.said.strip()[:200]})" if again.code else ""
                seen[f"{ended.in_words}{wrong or ', the next one does it all and clears up'}"] += 1
            yield Row(title, name, seen)


def together(place: Place, trials: int) -> Iterator[Row]:
    """Two writers of one name at once."""
    for force in (True, False):
        seen: Counter[str] = Counter()
        for _ in range(trials):
            place.empty()
            words = [
                "pack",
                place.source,
                place.out / "m.spq",
                "--method",
                "rtn",
                "--quiet",
                *(["--force"] if force else []),
            ]
            logs = [place.log, place.log.with_name("said-2")]
            began = time.monotonic()
            children = [start(command(*words), Fault(), log) for log in logs]
            ended = [wait(child, Fault(), log, began) for child, log in zip(children, logs, strict=True)]
            hidden = left_over(place.out, ["m.spq"])
            wrong = (", LEFT something" if hidden else "") + ("" if place.is_whole() else ", BROKEN")
            seen[" and ".join(sorted(one.in_words for one in ended)) + (wrong or ", the file is whole")] += 1
        yield Row("two at once", "pack --force" if force else "pack", seen)


def limits(place: Place, trials: int) -> Iterator[Row]:
    """Little memory, few files, few threads and processes."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    held = {
        limit: 1024 * int(status.partition(f"{name}:")[2].split()[0])
        for limit, name in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData"))
    }
    commands = place.readers() | {"pack --method rtn": place.writers()["pack --method rtn"]}

    def memory(limit: int) -> Fault:
        return Fault(limits={limit: held[limit] + int(2 ** place.random.uniform(16, 28))})

    faults: dict[str, Callable[[], Fault]] = {
        "RLIMIT_AS": lambda: memory(resource.RLIMIT_AS),
        "RLIMIT_DATA": lambda: memory(resource.RLIMIT_DATA),
        "RLIMIT_NOFILE": lambda: Fault(limits={resource.RLIMIT_NOFILE: place.random.randint(4, 24)}),
        "RLIMIT_NPROC": lambda: Fault(more_threads=place.random.randint(0, 4)),
    }
    for title, fault in faults.items():
        for name, words in commands.items():
            seen: Counter[str] = Counter()
            for _ in range(max(trials // 4, 1)):
                place.empty()
                ended = in_child(command(*words), fault(), place.log)
                left = left_over(place.out, ["m.spq"] if not ended.code else [])
                seen[ended.in_words + (", LEFT a file" if left else "")] += 1
            yield Row(title, name, seen)


def flipped(place: Place, trials: int) -> Iterator[Row]:
    """Flipped bits in files of a random and of a trained model."""
    files = [place.file, *place.trained()]
    runs = {file: place.run_of(file, place.least(file)) for file in files}
    for name, seen in flips(runs, place.folder, 500 * trials, place.random):
        yield Row("a flipped bit", name, seen)


def running(place: Place, trials: int) -> Iterator[Row]:
    """Files that change under a running model, models in children, many loads."""
    few = max(trials // 4, 1)
    for fault, name, seen in under_a_running_model(place.file, place.folder, place.random, few):
        yield Row(fault, name, seen)
    for how, name, seen in in_other_processes(place.file, place.folder, max(trials // 10, 1)):
        yield Row(how, name, seen)


def many_loads(place: Place, trials: int) -> Iterator[Row]:
    """Many loads in one process, which begins at once: all other trials happen meanwhile."""
    n, log = 500 * trials, place.log.with_name("said-loads")
    child = start(lambda: loads(place.file, n), Fault(), log)

    def ended() -> Iterator[Row]:
        found = wait(child, Fault(), log, time.monotonic(), patience=7200)
        yield Row("many loads", "load_model", Counter({last_line(found): n}))

    return ended()


def checking(place: Place, trials: int) -> Iterator[Row]:
    """What checksums cost: not a fault, but what it costs to notice them."""
    file = place.real()
    for way, found in shares(file, max(trials // 2, 1)).items():
        more = "" if statistics.median(found) < MOST_CHECKING else ", MORE than wanted"
        yield Row("none: SmolLM2-135M", f"load_model, {way}", Counter({in_words(found) + more: len(found)}))


KINDS: dict[str, Callable[[Place, int], Iterator[Row]]] = {
    "reads": reads,
    "disks": disks,
    "signals": signals,
    "together": together,
    "limits": limits,
    "running": running,
    "flips": flipped,
    "loads": many_loads,
    "checking": checking,
}
MOST_CHECKING = 0.03
"""The share of load time that checksums may take."""


def main() -> int:
    """Make the table; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="the page, docs/reliability.md")
    parser.add_argument("--trials", type=int, default=20, help="of each fault with each command, about")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=KINDS, help="only these kinds; may be given again")
    arguments = parser.parse_args()
    if "FAULT_SHIM" not in os.environ:
        return _with_shim()
    # Children are forked, so that each has these at once.
    for module in ("torch", "transformers", "spqfmt.cli.pack", "spqfmt.cli.repack", "spqfmt.cli.unpack"):
        importlib.import_module(module)
    began = time.monotonic()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder), random.Random(arguments.seed))
        preload([*place.readers().values(), *place.writers().values()], place.log)
        for found in [KINDS[kind](place, arguments.trials) for kind in arguments.only or KINDS]:
            for row in found:
                rows.append(row)
                print(f"{row.fault:20} {row.command:28} {dict(row.seen)}", flush=True)
    words = " ".join(f"--only {kind}" for kind in arguments.only or ())
    numbers = f"--trials {arguments.trials} --seed {arguments.seed}"
    command = f"python tools/faults/faults.py docs/reliability.md {numbers} {words}".strip()
    arguments.out.write_text(page(rows, command, time.monotonic() - began), encoding="utf-8")
    return 1 if any(is_wrong(what) for row in rows for what in row.seen) else 0


def _with_shim() -> int:
    """Run once more, with shim.c before the C library."""
    with tempfile.TemporaryDirectory() as folder:
        shim = Path(folder) / "shim.so"
        compiler = os.environ.get("CC", "cc")
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-O1", "-o", str(shim), str(HERE / "shim.c")], check=True
        )
        # Threads that wait busily would take the time of all others on a busy machine.
        environment = {**os.environ, "LD_PRELOAD": str(shim), "FAULT_SHIM": "1", "OMP_WAIT_POLICY": "passive"}
        return subprocess.run([sys.executable, *sys.argv], env=environment, check=False).returncode


def is_wrong(what: str) -> bool:
    """Whether an outcome is one that must not be: a word in capitals."""
    return any(len(word.strip(",.:")) > 3 and word.strip(",.:").isupper() for word in what.split())


def page(rows: list[Row], command: str, seconds: float) -> str:
    """The table in Markdown."""
    total = sum(row.seen.total() for row in rows)
    lines = [
        "<!-- Made by tools/faults/faults.py; do not edit. -->",
        "",
        "# What was seen under faults",
        "",
        f"`{command}`: {total:,} trials in {seconds / 60:.0f} minutes ({processor()}).",
        "Commands and running models are in a process of their own for each trial, on a small random llama;",
        "all flips of a file and a way are in one process, on that llama and on a trained model (glassllm,",
        "lossless and in 3 bits), and so are all loads. RLIMIT_AS and RLIMIT_DATA leave 64 KiB to 256 MiB over what",
        "the process has at first; RLIMIT_NPROC, which binds the process as a user of its own, leaves 0 to 4 threads.",
        "What must not happen would stand in capitals. Last comes no fault, but what it costs to notice them:",
        "checksums' share of the time to load a model.",
        "",
        "| fault | command | trials | seen |",
        "|---|---|---:|---|",
    ]
    for row in rows:
        seen = "; ".join(f"{n:,} x {what}" for what, n in row.seen.most_common())
        lines.append(f"| {row.fault} | `{row.command}` | {row.seen.total():,} | {seen} |")
    return "\n".join(lines) + "\n"


def processor() -> str:
    """The processor's name and how many there are."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(os.sched_getaffinity(0))} x {names[0] if names else 'unknown processor'}"


if __name__ == "__main__":
    sys.exit(main())
