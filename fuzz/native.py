"""Runs the fuzz targets of the native core, one after the other: their corpora, then changed inputs, for some seconds.

    python fuzz/native.py --build build/fuzz --seconds 60 [--target jobs ...]

`make fuzz-native` builds them. Inputs that go new ways are kept in BUILD/corpus; `--minimize` writes to fuzz/corpus
what all that is there needs to go all ways. `--record FILE` adds a line of JSON for each run, of which report.py makes
the table in fuzz/README.md. Exit code 1 names the targets that found something; the input is in BUILD.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
MOST_BYTES = 400
"""Inputs of a corpus in the repository are small: what matters of a larger one is seldom its size."""


def fuzz(program: Path, corpus: list[Path], seconds: int, more: list[str]) -> tuple[int, str]:
    """Run a target; return its exit code and what it printed."""
    folder = program.parent / f"{program.name}-run"
    folder.mkdir(exist_ok=True)
    command = [str(program), *map(str, corpus), f"-max_total_time={seconds}", "-print_final_stats=1", *more]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    return done.returncode, done.stderr


def minimize(program: Path, name: str, found: Path) -> int:
    """Write the smallest inputs that go all ways to the corpus of the repository; return their number."""
    corpus = FOLDER / "corpus" / name
    fresh = found.with_name(f"{name}-minimized")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    corpus.mkdir(parents=True, exist_ok=True)
    # How often a place is reached is no reason to keep an input here: corpora stay small.
    command = [str(program), "-merge=1", "-use_counters=0", str(fresh), str(found), str(corpus)]
    subprocess.run(command, check=True, capture_output=True)
    for old in corpus.iterdir():
        old.unlink()
    kept = sorted(path for path in fresh.iterdir() if path.stat().st_size <= MOST_BYTES)
    for number, path in enumerate(kept):
        shutil.copy(path, corpus / f"{number:03}")
    return len(kept)


def _last(pattern: str, said: str) -> int:
    """The last number that libFuzzer said in such words; 0 where there is none."""
    return int((re.findall(pattern, said) or [0])[-1])


def main() -> int:
    """Run the targets that were named, or all; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--build", type=Path, default=Path("build/fuzz"), help="where they were built")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--target", action="append", help="only this one; may be given again")
    parser.add_argument("--minimize", action="store_true", help="write fuzz/corpus instead of running")
    parser.add_argument("--record", type=Path, help="a file that gets a line for each run")
    parser.add_argument("more", nargs="*", help="options of libFuzzer, behind --")
    arguments = parser.parse_args()
    build = arguments.build.resolve() / "fuzz"
    names = arguments.target or sorted(
        path.stem for path in (FOLDER / "native").glob("*.cpp") if path.stem != "driver"
    )
    failed, total = [], 0
    for name in names:
        program, found = build / f"fuzz_{name}", build / "corpus" / name
        found.mkdir(parents=True, exist_ok=True)
        if arguments.minimize:
            print(f"{name}: {minimize(program, name, found)} inputs", flush=True)
            continue
        corpus = [found, FOLDER / "corpus" / name]
        began = time.monotonic()
        code, said = fuzz(
            program, [path for path in corpus if path.exists()], arguments.seconds, arguments.more
        )
        run = {
            "target": name,
            "executions": _last(r"number_of_executed_units: *(\d+)", said),
            "seconds": round(time.monotonic() - began),
            "places": _last(r"cov: (\d+)", said),
            "findings": int(code != 0),
        }
        total += run["executions"]
        print(f"{name}: {run['executions']} executions, {run['places']} places reached", flush=True)
        if arguments.record is not None:
            with arguments.record.open("a", encoding="utf-8") as record:
                record.write(json.dumps(run) + "\n")
        if code:
            failed.append(name)
            print(said[-8000:], flush=True)
    if not arguments.minimize:
        print(
            f"native: {total} executions; "
            + (f"found something: {', '.join(failed)}" if failed else "no finding")
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
