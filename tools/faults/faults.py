"""Faults on real commands, and what was seen: makes docs/reliability.md.

    python tools/faults/faults.py OUT.md [--trials 20] [--seed 0] [--only signals ...]

A small model is packed, and each command runs in forked children with faults at random places: reads that fail, are
short or slow, a disk that fills, signals, two writers of one name, files that change under a running model, limits of
the system, flipped bits. Each row counts how the trials ended; what must not happen is in capitals, and the exit code
is then 1. Needs Linux and a C compiler (for shim.c).
"""

import argparse
import importlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from commands import Fault, Seen, command, in_child, left_over, start, wait
from flips import flips
from running import loads, smallest, under_a_running_model

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    fault: str
    command: str
    seen: Counter[str]


class Place:
    """A folder with a source, what was packed from it, and an empty folder to write to."""

    def __init__(self, folder: Path, random_: random.Random) -> None:
        self.random = random_
        self.folder, self.out, self.log = folder, folder / "out", folder / "said"
        self.source, self.file = folder / "source", folder / "model.spq"
        make = [sys.executable, str(HERE.parent / "models" / "tiny.py"), "llama", str(self.source)]
        subprocess.run(make, check=True)
        self.ends_well("pack", self.source, self.file, "--method", "rtn", "--bits", 4, "--quiet")
        self.ends_well("pack", self.source, folder / "cut.spq", "--shard-size", "100kB", "--quiet")
        in_child(lambda: print(smallest(self.file)), Fault(), self.log)
        self.smallest = int(self.log.read_text(encoding="utf-8").split()[-1])
        self.empty()

    def ends_well(self, *arguments: object) -> Seen:
        """Run a command without a fault, which must go well."""
        seen = in_child(command(*arguments), Fault(), self.log)
        if seen.code:
            raise SystemExit(f"spqfmt {arguments}: {seen.said}")
        return seen

    def empty(self) -> None:
        """Have nothing in the folder that commands write to."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()

    def readers(self) -> dict[str, tuple[object, ...]]:
        """Commands that read the file and write nothing that lasts, by what the table calls them."""
        run = ("run", self.file, "--prompt", "abc", "--max-new-tokens", 3, "--quiet")
        return {
            "inspect": ("inspect", self.file),
            "verify --content": ("verify", self.file, "--content"),
            "run": run,
            "run --memory": (*run, "--memory", str(self.smallest)),
        }

    def writers(self) -> dict[str, tuple[object, ...]]:
        """Commands that write to the folder, by what the table calls them."""
        packed, model = self.out / "m.spq", self.out / "model"
        method = ("--method", "ecq", "--bits", 4, "--samples", 4, "--seq-len", 32)
        return {
            "pack --method rtn": ("pack", self.source, packed, "--method", "rtn", "--quiet", "--force"),
            "pack --method ecq --resume": (
                "pack",
                self.source,
                packed,
                *method,
                "--quiet",
                "--force",
            ),
            "pack --shard-size": ("pack", self.source, packed, "--shard-size", "100kB", "--quiet", "--force"),
            "repack": ("repack", self.file, packed, "--codec", "zstd", "--quiet", "--force"),
            "unpack": ("unpack", self.file, model, "--quiet"),
        }


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
            for _ in range(trials):
                place.empty()
                at = int(2 ** place.random.uniform(4, 18))
                environment = {"FAULT_PATH": str(place.out), "FAULT_KIND": "full", "FAULT_AT": str(at)}
                fault = (
                    Fault(environment) if kind == "disk full" else Fault(limits={resource.RLIMIT_FSIZE: at})
                )
                ended = in_child(command(*words), fault, place.log)
                seen[f"{ended.in_words}, {aftermath(place, ended)}"] += 1
            yield Row(kind, name, seen)


def aftermath(place: Place, ended: Seen) -> str:
    """What the folder shows after a command that failed or did not."""
    if not ended.code:
        return "all there"
    left = [name for name in left_over(place.out, []) if not name.endswith(".resume")]
    return f"LEFT {len(left)}" if left else "nothing left"


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
            for _ in range(trials):
                place.empty()
                fault = Fault(signal=number, after=place.random.uniform(0, usual))
                ended = in_child(command(*words), fault, place.log)
                if number != signal.SIGKILL:
                    seen[f"{ended.in_words}, {aftermath(place, ended)}"] += 1
                    continue
                wrong = "" if _is_whole(place) else ", a BROKEN file under its name"
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


def _is_whole(place: Place) -> bool:
    files = [path for path in (place.out / "m.spq", place.out / "m.spq.index.json") if path.exists()]
    return all(in_child(command("verify", path), Fault(), place.log).code == 0 for path in files)


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
            wrong = (", LEFT something" if hidden else "") + ("" if _is_whole(place) else ", BROKEN")
            seen[" and ".join(sorted(one.in_words for one in ended)) + (wrong or ", the file is whole")] += 1
        yield Row("two at once", "pack --force" if force else "pack", seen)


def limits(place: Place, trials: int) -> Iterator[Row]:
    """Little memory, few files, few processes."""
    held = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    commands = place.readers() | {"pack --method rtn": place.writers()["pack --method rtn"]}
    for title, limit in (
        ("RLIMIT_AS", resource.RLIMIT_AS),
        ("RLIMIT_DATA", resource.RLIMIT_DATA),
        ("RLIMIT_NOFILE", resource.RLIMIT_NOFILE),
        ("RLIMIT_NPROC", resource.RLIMIT_NPROC),
    ):
        for name, words in commands.items():
            seen: Counter[str] = Counter()
            for _ in range(max(trials // 4, 1)):
                place.empty()
                more = int(2 ** place.random.uniform(16, 28))
                value = (
                    held + more
                    if limit in {resource.RLIMIT_AS, resource.RLIMIT_DATA}
                    else place.random.randint(4, 24)
                )
                ended = in_child(command(*words), Fault(limits={limit: value}), place.log)
                left = left_over(place.out, ["m.spq"] if not ended.code else [])
                seen[ended.in_words + (", LEFT a file" if left else "")] += 1
            yield Row(title, name, seen)


def _flips(place: Place, trials: int) -> Iterator[Row]:
    run = place.readers()["run --memory"]
    path = place.folder / "flipped.spq"
    for name, seen in flips(place.file, path, run=run, n=100 * trials, random_=place.random):
        yield Row("a flipped bit", name, seen)


def _running(place: Place, trials: int) -> Iterator[Row]:
    for fault, name, seen in under_a_running_model(
        place.file, place.folder, place.random, max(trials // 4, 1)
    ):
        yield Row(fault, name, seen)
    yield Row("many loads", f"load_model, {20 * trials} times", loads(place.file, 20 * trials, place.log))


KINDS: dict[str, Callable[[Place, int], Iterator[Row]]] = {
    "reads": reads,
    "disks": disks,
    "signals": signals,
    "together": together,
    "limits": limits,
    "running": _running,
    "flips": _flips,
}


def main() -> int:
    """Make the table; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="the page, docs/reliability.md")
    parser.add_argument("--trials", type=int, default=20, help="of each fault with each command, about")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=KINDS, help="only these kinds; may be given again")
    parser.add_argument(
        "--rows", type=Path, help="a file that keeps what was seen: kinds that are there are not run again"
    )
    arguments = parser.parse_args()
    if "FAULT_SHIM" not in os.environ:
        return _with_shim()
    # Children are forked, so that each has these at once.
    for module in (
        "torch",
        "transformers",
        "spqfmt.cli.pack",
        "spqfmt.cli.run",
        "spqfmt.cli.repack",
        "spqfmt.cli.unpack",
    ):
        importlib.import_module(module)
    rows = kept_rows(arguments.rows)
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder), random.Random(arguments.seed))
        for kind in arguments.only or KINDS:
            if kind in rows:
                continue
            rows[kind] = []
            for row in KINDS[kind](place, arguments.trials):
                rows[kind].append(row)
                print(f"{row.fault:20} {row.command:28} {dict(row.seen)}", flush=True)
            if arguments.rows is not None:
                kept = {kind: [vars(row) for row in found] for kind, found in rows.items()}
                arguments.rows.write_text(json.dumps(kept), encoding="utf-8")
    all_rows = [row for kind in KINDS for row in rows.get(kind, [])]
    arguments.out.write_text(page(all_rows, arguments.trials, arguments.seed), encoding="utf-8")
    return 1 if any(is_wrong(what) for row in all_rows for what in row.seen) else 0


def kept_rows(path: Path | None) -> dict[str, list[Row]]:
    """What an earlier run has seen, by kind."""
    if path is None or not path.exists():
        return {}
    kept = json.loads(path.read_text(encoding="utf-8"))
    return {
        kind: [Row(row["fault"], row["command"], Counter(row["seen"])) for row in rows]
        for kind, rows in kept.items()
    }


def _with_shim() -> int:
    """Run once more, with shim.c before the C library."""
    with tempfile.TemporaryDirectory() as folder:
        shim = Path(folder) / "shim.so"
        compiler = os.environ.get("CC", "cc")
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-O1", "-o", str(shim), str(HERE / "shim.c")], check=True
        )
        environment = {**os.environ, "LD_PRELOAD": str(shim), "FAULT_SHIM": "1"}
        return subprocess.run([sys.executable, *sys.argv], env=environment, check=False).returncode


def is_wrong(what: str) -> bool:
    """Whether an outcome is one that must not be: a word in capitals."""
    return any(len(word.strip(",.:")) > 3 and word.strip(",.:").isupper() for word in what.split())


def page(rows: list[Row], trials: int, seed: int) -> str:
    """The table in Markdown."""
    total = sum(row.seen.total() for row in rows)
    lines = [
        "<!-- Made by tools/faults/faults.py; do not edit. -->",
        "",
        "# What was seen under faults",
        "",
        f"`python tools/faults/faults.py docs/reliability.md --trials {trials} --seed {seed}`: {total} trials",
        "on a small llama, each in a process of its own. What must not happen would stand in capitals.",
        "",
        "| fault | command | trials | seen |",
        "|---|---|---|---|",
    ]
    for row in rows:
        seen = "; ".join(f"{n} x {what}" for what, n in row.seen.most_common())
        lines.append(f"| {row.fault} | `{row.command}` | {row.seen.total()} | {seen} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
