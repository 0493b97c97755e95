"""Small models of the families that transformers has: is what is loaded from a packed file what the source computes?

    python tools/families/sweep.py RESULTS.jsonl [FAMILY ...]      probe families, all by default, one line each
    python tools/families/sweep.py RESULTS.jsonl --table OUT.md    make a table of what was probed

Each class is built by a process of its own, which ends after two minutes. Those that the results have are left.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import transformers
from probe import Result, model_classes, probe

_MOST_SECONDS = 120


def main() -> None:
    """Run the tool, whose help is the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path)
    parser.add_argument("families", nargs="*")
    parser.add_argument("--table", type=Path)
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    if arguments.table is not None:
        arguments.table.write_text(table(read(arguments.results)))
        return
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    done = {(r["family"], r["model_class"]) for r in read(arguments.results)}
    for family in arguments.families or list(transformers.CONFIG_MAPPING.keys()):
        for model_class in model_classes(transformers.CONFIG_MAPPING[family]):
            if (family, model_class.__name__) not in done:
                _probe(family, model_class, arguments.results, getattr(torch, arguments.dtype))


def _probe(family: str, model_class: Any, results: Path, dtype: torch.dtype) -> None:
    with tempfile.TemporaryDirectory() as folder:
        process = multiprocessing.get_context("fork").Process(
            target=lambda: _write(results, probe(family, model_class, Path(folder), dtype))
        )
        process.start()
        process.join(_MOST_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
            _write(results, Result(family, model_class.__name__, note="not done in two minutes"))
        elif process.exitcode:
            ended = f"FAILS: the process ended with {process.exitcode}"
            _write(results, Result(family, model_class.__name__, decoded=ended, packed=ended))


def _write(results: Path, result: Result) -> None:
    with results.open("a") as file:
        file.write(json.dumps(vars(result)) + "\n")


def read(results: Path) -> list[dict[str, Any]]:
    """What was written, by family and class; of what was probed twice the last."""
    if not results.exists():
        return []
    found = {(r["family"], r["model_class"]): r for r in map(json.loads, results.read_text().splitlines())}
    return [found[key] for key in sorted(found)]


def table(results: list[dict[str, Any]]) -> str:
    """The table of all families, as Markdown."""
    verdicts = Counter(
        "equal" if r["decoded"] == r["packed"] == "equal" else "different" if r["decoded"] else "not run"
        for r in results
    )
    lines = [
        "# Model families",
        "",
        "Small random models of families that transformers has, packed without loss and loaded three times each way: "
        f"`decoded`, and from packed weights with and without the least ceiling. Of {len(results)} classes "
        f"{verdicts['equal']} are equal, {verdicts['different']} refused or different and {verdicts['not run']} "
        f"not run, with transformers {transformers.__version__}.",
        "",
        "Decoded is equal bit for bit; packed up to the order of sums in float32, the same from load to load. A class "
        "without an answer was not built small: the note says why. Made by `tools/families/sweep.py`; a family that is "
        "not here was not probed.",
        "",
        "| family | class | decoded | packed | packed layers | note |",
        "|---|---|---|---|---:|---|",
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
            str(n),
            r["note"].replace("|", "/"),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
