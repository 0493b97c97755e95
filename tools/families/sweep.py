"""Small models of the families that transformers has: is what is loaded from a packed file what the source computes?

    python tools/families/sweep.py RESULTS.jsonl [FAMILY ...]      probe families, all by default, one line each
    python tools/families/sweep.py RESULTS.jsonl --table OUT.md    make a table of what was probed

Classes are probed by a process beside, ended where one takes two minutes of it. Those that the results have are left.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import transformers
from probe import Result, model_classes, probe

_MOST_SECONDS = 120
_MOST_WAITING = 1800
"""For a process that does nothing."""


def main() -> None:
    """Run the tool, whose help is the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path)
    parser.add_argument("families", nargs="*")
    parser.add_argument("--table", type=Path)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument(
        "--loads", type=int, default=2, help="how often a file is loaded each way, 2 by default"
    )
    arguments = parser.parse_args()
    if arguments.table is not None:
        arguments.table.write_text(table(read(arguments.results)))
        return
    done = {
        (r["family"], r["model_class"]) for r in read(arguments.results) if r["four_bits"] or not r["decoded"]
    }
    families = list(arguments.families or transformers.CONFIG_MAPPING.keys())
    while families:
        with _worker(getattr(torch, arguments.dtype), arguments.loads) as (worker, process):
            while families and _probed(worker, process, families[0], done=done, results=arguments.results):
                families.pop(0)


@contextmanager
def _worker(dtype: torch.dtype, n_loads: int) -> Iterator[tuple[Connection, Any]]:
    """Where to send the name of a family and of those of its classes that are done, and the process that takes it."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_probe_all, args=(there, dtype, n_loads))
    process.start()
    there.close()
    try:
        yield here, process
    finally:
        here.close()
        process.kill()
        process.join()


def _probed(worker: Connection, process: Any, family: str, done: set[tuple[str, str]], results: Path) -> bool:
    """Write what is found of a family's classes that are not done. False where the worker ended or has to."""
    name = ""
    try:
        worker.send((family, [name for of, name in done if of == family]))
        while worker.poll(_MOST_WAITING):
            answer = worker.recv()
            if answer is None:
                return True
            if isinstance(answer, str):
                name = answer
            else:
                _write(results, answer)
        note = "WAITS without an end"
    except (EOFError, OSError):
        process.join()
        took_long = process.exitcode == -signal.SIGPROF
        note = "not done in two minutes" if took_long else f"ENDS the process with {process.exitcode}"
    _write(results, Result(family, name, note=note))
    done.add((family, name))
    return False


def _probe_all(asked: Connection, dtype: torch.dtype, n_loads: int) -> None:
    """Send the name and then the Result of each class of the families that are asked for, and None after each."""
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    while True:
        try:
            family, done = asked.recv()
        except EOFError:
            return
        for model_class in model_classes(transformers.CONFIG_MAPPING[family]):
            if model_class.__name__ not in done:
                asked.send(model_class.__name__)
                signal.setitimer(signal.ITIMER_PROF, _MOST_SECONDS)
                with tempfile.TemporaryDirectory() as folder:
                    asked.send(probe(family, model_class, Path(folder), dtype, n_loads))
        asked.send(None)


def _write(results: Path, result: Result) -> None:
    with results.open("a") as file:
        file.write(json.dumps(vars(result)) + "\n")


def read(results: Path) -> list[dict[str, Any]]:
    """What was written, by family and class; of what was probed twice the last."""
    if not results.exists():
        return []
    found = {(r["family"], r["model_class"]): r for r in map(json.loads, results.read_text().splitlines())}
    return [found[key] for key in sorted(found)]


def _verdict(result: dict[str, Any]) -> str:
    found = {result[way] for way in ("decoded", "packed", "four_bits")} - {""}
    if not found and not result["note"].startswith(("ENDS", "WAITS")):
        return "not run"
    return "equal" if found == {"equal"} else "different"


def table(results: list[dict[str, Any]]) -> str:
    """The table of all families, as Markdown."""
    verdicts = Counter(map(_verdict, results))
    n_four_bits = sum(bool(r["four_bits"]) for r in results)
    lines = [
        "# Model families",
        "",
        "Small random models of families that transformers has, packed without loss and loaded `decoded` and from "
        "packed weights, with a ceiling (a quarter of the file, or the least that the plan allows) and without; then "
        "in 4 bits (`rtn`, groups of 16), beside what transformers loads of the unpacked folder. "
        f"Of {len(results)} classes {verdicts['equal']} are equal, {verdicts['different']} refused or different and "
        f"{verdicts['not run']} not run, with transformers {transformers.__version__}. Those whose column of 4 bits is "
        f"not empty have been probed so too, {n_four_bits}; the others with the least ceiling and without loss only.",
        "",
        "Equal: all weights bit for bit, and outputs up to the order of sums in float32, the same from load to load. A "
        "class without an answer was not built small: the note says why. Made by `tools/families/sweep.py`; a family "
        "that is not here was not probed.",
        "",
        "| family | class | decoded | packed | 4 bits | packed layers | note |",
        "|---|---|---|---|---|---:|---|",
    ]
    for r in results:
        n = r["n_packed"] or ""
        if r["ran"] and r["model_class"] not in r["ran"] and not r["note"]:
            r["note"] = f"run in parts: {', '.join(r['ran'])}"
        cells = (
            r["family"],
            r["model_class"],
            r["decoded"],
            r["packed"],
            r["four_bits"],
            str(n),
            r["note"].replace("|", "/"),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
