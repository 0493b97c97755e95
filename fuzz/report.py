"""Makes the table of what was fuzzed in fuzz/README.md.

    python fuzz/report.py --record counts.jsonl [--files files.txt] [--coverage build/fuzz-coverage]

`counts.jsonl` is what `native.py --record` wrote, in any number of runs; `files.txt` what `files.py` printed. With
`--coverage` the lines of the core are counted that the inputs of fuzz/corpus reach (`make fuzz-coverage` builds the
targets for that, and needs clang and llvm); without it those columns are left out.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
CORE = FOLDER.parent / "spqfmt" / "kernels" / "native"
BEGIN, END = "<!-- Made by report.py: -->\n", "<!-- :made by report.py -->\n"
LEAST_SHARE = 0.8
"""Files of the core with a smaller share of lines reached are named."""


@dataclass
class Counted:
    """What all runs of a target did: executions, seconds, findings; most places that one of them reached."""

    executions: int = 0
    seconds: int = 0
    findings: int = 0
    places: int = 0


@dataclass(frozen=True)
class Lines:
    """Lines of the core that are reached, and all that are compiled, by file."""

    reached: Counter[str] = field(default_factory=Counter)
    of: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        """Both numbers and the share."""
        reached, of = self.reached.total(), self.of.total()
        return f"{reached:,} of {of:,} ({reached / of:.0%})" if of else "none"


def counted(record: Path) -> dict[str, Counted]:
    """Sum the runs of each target."""
    found: defaultdict[str, Counted] = defaultdict(Counted)
    for line in record.read_text(encoding="utf-8").splitlines():
        run = json.loads(line)
        target = found[run["target"]]
        target.executions += run["executions"]
        target.seconds += run["seconds"]
        target.findings += run["findings"]
        target.places = max(target.places, run["places"])
    return dict(found)


def covered(build: Path, names: list[str]) -> dict[str, Lines]:
    """Lines that each target reaches with the inputs of the repository, and under "" those of all together."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        raw = {}
        for name in names:
            raw[name] = Path(folder) / f"{name}.profraw"
            program = build / "fuzz" / f"fuzz_{name}"
            environment = {**os.environ, "LLVM_PROFILE_FILE": str(raw[name])}
            subprocess.run(
                [program, "-runs=0", FOLDER / "corpus" / name],
                env=environment,
                check=True,
                capture_output=True,
            )
            found[name] = _lines([raw[name]], [program], Path(folder))
        found[""] = _lines(
            list(raw.values()), [build / "fuzz" / f"fuzz_{name}" for name in names], Path(folder)
        )
    return found


def _found(tool: str) -> str:
    path = shutil.which(tool)
    if path is None:
        raise SystemExit(f"there is no {tool}: apt-get install llvm")
    return path


def _lines(raw: list[Path], programs: list[Path], folder: Path) -> Lines:
    merged = folder / "merged.profdata"
    subprocess.run([_found("llvm-profdata"), "merge", "-o", merged, *raw], check=True)
    more = [word for program in programs[1:] for word in ("-object", str(program))]
    command = [
        _found("llvm-cov"),
        "export",
        "-summary-only",
        f"-instr-profile={merged}",
        str(programs[0]),
        *more,
        str(CORE),
    ]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lines = Lines()
    for file in json.loads(said)["data"][0]["files"]:
        name = Path(file["filename"]).name
        lines.reached[name] = file["summary"]["lines"]["covered"]
        lines.of[name] = file["summary"]["lines"]["count"]
    return lines


def table(runs: dict[str, Counted], lines: dict[str, Lines], files: str) -> str:
    """The table in Markdown, and sentences about all together."""
    heads = ["target", "executions", "seconds", "findings open", "places (libFuzzer)"]
    rows = [heads + ["lines of the core that its corpus reaches"] * bool(lines)]
    rows.append(["---", *["---:"] * (len(rows[0]) - 1)])
    for name, run in sorted(runs.items()):
        row = [f"`{name}`", f"{run.executions:,}", f"{run.seconds:,}", str(run.findings), f"{run.places:,}"]
        rows.append(row + ([str(lines[name])] if name in lines else []))
    executions, seconds = (
        sum(getattr(run, what) for run in runs.values()) for what in ("executions", "seconds")
    )
    text = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    text += f"\nNative targets: {executions:,} executions in {seconds:,} seconds."
    if lines:
        low = sorted((lines[""].reached[name] / of, name) for name, of in lines[""].of.items() if of)
        few = ", ".join(f"`{name}` {share:.0%}" for share, name in low if share < LEAST_SHARE)
        text += f" Together the corpora reach {lines['']} lines of the core"
        text += f"; less than {LEAST_SHARE:.0%} of {few}." if few else "."
    return text + "\n" + files


def whole_files(said: str) -> str:
    """A sentence about the runs of files.py, from what it printed."""
    outcomes: Counter[str] = Counter()
    n, seeds = 0, []
    for line in re.findall(r"^whole files: .*", said, re.MULTILINE):
        number, seed, rest = re.fullmatch(r"whole files: (\d+) \(seed (\d+)\), (.*)", line).groups()  # type: ignore[union-attr]
        n += int(number)
        seeds.append(seed)
        for one in rest.split(", "):
            count, what = one.split(" ", 1)
            outcomes[what] += int(count)
    if not n:
        return ""
    findings = sum(outcomes[what] for what in ("raised", "disagreed", "other", "kind"))
    said = ", ".join(f"{count:,} {what}" for what, count in outcomes.most_common())
    return (
        f"\nWhole files: {n:,} under both decoders (seeds {', '.join(seeds)}): {said}; {findings} findings.\n"
    )


def main() -> int:
    """Write the table between its marks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--files", type=Path)
    parser.add_argument(
        "--coverage", type=Path, help="a build with -fprofile-instr-generate -fcoverage-mapping"
    )
    parser.add_argument("--out", type=Path, default=FOLDER / "README.md")
    arguments = parser.parse_args()
    runs = counted(arguments.record)
    lines = covered(arguments.coverage.resolve(), sorted(runs)) if arguments.coverage else {}
    files = whole_files(arguments.files.read_text(encoding="utf-8")) if arguments.files else ""
    page = arguments.out.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    if not rest:
        raise SystemExit(f"{arguments.out} has no line {BEGIN.strip()}")
    arguments.out.write_text(f"{before}{BEGIN}\n{table(runs, lines, files)}\n{END}{after}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
