"""How fast do several processes pack a model, beside one?

python tools/bench/together_rates.py SOURCE FOLDER [--processes 1,2,4] [--rounds 2] [--shard-size 256MiB]
    [--method lossless,rtn] [--json]

FOLDER gets the files, twice. Plain `spqfmt pack` and torchrun with so many processes take turns. Seconds are the pack's
own, from the open source to the last rename, the fewest of all rounds, and the most in brackets; processor seconds
those of all processes, less what they take to start and to find each other (measured with options that are refused).
`largest` is the peak memory of the largest process. Exit code 1 where the files are not those of one process.
"""

import argparse
import filecmp
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

METHODS = {
    "lossless": ["--method", "lossless"],
    "rtn": ["--method", "rtn", "--bits", "4", "--group-size", "64"],
}
PLAIN = "plain"


def command(n: int | str) -> list[str]:
    """What starts `pack` on so many processes."""
    if n == PLAIN:
        return [sys.executable, "-m", "spqfmt"]
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(n),
        "-m",
        "spqfmt",
    ]


def run(n: int | str, arguments: list[str]) -> tuple[int, str, Any]:
    """Exit code, stdout, and what all processes have used."""
    process = subprocess.Popen(
        [*command(n), "pack", *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    text = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, text, used


def seconds_to_start(n: int | str, source: Path, folder: Path) -> float:
    """Processor seconds before anything is packed."""
    code, _, used = run(n, [str(source), str(folder / "none.spq"), "--method", "nonsense"])
    assert code
    return float(used.ru_utime + used.ru_stime)


def same(first: Path, second: Path) -> bool:
    """Whether two folders hold the same files."""
    names = sorted(path.name for path in first.iterdir())
    if names != sorted(path.name for path in second.iterdir()):
        return False
    return all(filecmp.cmp(first / name, second / name, shallow=False) for name in names)


def measure(arguments: argparse.Namespace, method: str) -> list[dict[str, Any]]:
    """A row for one process and for each number of them."""
    counts: list[int | str] = [PLAIN, *map(int, arguments.processes.split(","))]
    start = {n: seconds_to_start(n, arguments.source, arguments.folder) for n in counts}
    rows: dict[int | str, dict[str, Any]] = {}
    options = ["--shard-size", arguments.shard_size, "--json", *METHODS[method]]
    first, other = arguments.folder / "plain", arguments.folder / "together"
    for _ in range(arguments.rounds):
        for n in counts:
            folder = first if n == PLAIN else other
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            code, text, used = run(n, [str(arguments.source), str(folder / "m.spq"), *options])
            if code:
                raise SystemExit(f"pack ended with {code}")
            report = json.loads(text)
            row = rows.setdefault(
                n, {"method": method, "processes": n, "seconds": [], "cpu": [], "same": True}
            )
            row["seconds"].append(report["seconds"])
            row["cpu"].append(used.ru_utime + used.ru_stime - start[n])
            row |= {"raw_bytes": report["raw_bytes"], "file_bytes": report["file_bytes"]}
            row["n_weights"] = report["n_weights"]
            row["largest"] = max(row.get("largest", 0), used.ru_maxrss * 1024)
            row["same"] &= n == PLAIN or same(first, other)
    return list(rows.values())


def main() -> None:
    """Run the tool, whose help is the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--processes", default="1,2,4")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--shard-size", default="256MiB")
    parser.add_argument("--method", default="lossless,rtn")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = [row for method in arguments.method.split(",") for row in measure(arguments, method)]
    if arguments.json:
        print(json.dumps(rows, indent=1))
    else:
        print(
            "| method | processes | seconds | source MB/s | processor seconds | largest process | same files |"
        )
        print("|---|---:|---:|---:|---:|---:|---|")
        for row in rows:
            rate = row["raw_bytes"] / min(row["seconds"]) / 1e6
            seconds, cpu = (f"{min(found):.1f} ({max(found):.1f})" for found in (row["seconds"], row["cpu"]))
            print(
                f"| {row['method']} | {row['processes']} | {seconds} | {rate:.0f} | {cpu} "
                f"| {row['largest'] / 1e6:.0f} MB | {'yes' if row['same'] else 'NO'} |"
            )
    sys.exit(not all(row["same"] for row in rows))


if __name__ == "__main__":
    main()
