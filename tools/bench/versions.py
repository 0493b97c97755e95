"""How fast two versions of spqfmt read the same files, in alternation.

python tools/bench/versions.py OLD/bin/python NEW/bin/python FILE.spq ... [--rounds 15] [--kinds read,packed]

Each interpreter has its version installed and stays for all rounds. Of each round the seconds of the processor and of
the clock are compared in pairs: the median of the new one's over the old one's, and the middle half of the pairs.
"""

import argparse
import statistics
import subprocess

_WORKER = """
import gc, sys, time, warnings
warnings.filterwarnings("ignore")
import spqfmt

def open_file(path):
    with spqfmt.open(path) as file:
        return list(file)

def read(path):
    with spqfmt.open(path) as file:
        for name in file:
            file.read(name)

def packed(path):
    model, tokenizer = spqfmt.load_model(path, packed=True)
    model.packed_weights.close()

kinds = {"open": open_file, "read": read, "decoded": spqfmt.load_model, "packed": packed}
print("ready", flush=True)
for line in sys.stdin:
    kind, path = line.rstrip("\\n").split(" ", 1)
    gc.collect()
    busy, began = time.process_time(), time.perf_counter()
    result = kinds[kind](path)
    print(time.process_time() - busy, time.perf_counter() - began, flush=True)
    del result
"""


class _Version:
    """A process that reads what it is told to, and says how long it took."""

    def __init__(self, python: str) -> None:
        command = [python, "-c", _WORKER]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self._line()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a version has ended; its error stands above")
        return line

    def seconds(self, kind: str, path: str) -> tuple[float, float]:
        """Return what it took: seconds of the processor, and of the clock."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{kind} {path}\n")
        busy, taken = self._line().split()
        return float(busy), float(taken)


def _ratios(old: list[float], new: list[float]) -> str:
    pairs = sorted(after / before for before, after in zip(old, new, strict=True))
    low, middle, high = statistics.quantiles(pairs, n=4)
    return f"{1000 * statistics.median(new):7.1f} ms, {middle:.3f} of the old ({low:.3f} to {high:.3f})"


def main() -> None:
    """Print a line for each file and kind of reading."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("files", nargs="+")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--kinds", default="open,read,decoded,packed")
    arguments = parser.parse_args()
    versions = [_Version(arguments.old), _Version(arguments.new)]
    for path in arguments.files:
        for kind in arguments.kinds.split(","):
            taken: list[list[tuple[float, float]]] = [[], []]
            for number in range(arguments.rounds + 1):
                for k in (0, 1) if number % 2 else (1, 0):
                    taken[k].append(versions[k].seconds(kind, path))
            # The first round warms files and code.
            (busy_old, clock_old), (busy_new, clock_new) = (zip(*rounds[1:], strict=True) for rounds in taken)
            print(f"{path}, {kind}: processor {_ratios([*busy_old], [*busy_new])}")
            print(f"{path}, {kind}: clock     {_ratios([*clock_old], [*clock_new])}", flush=True)


if __name__ == "__main__":
    main()
