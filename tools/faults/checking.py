"""What the checksums of a file cost, as a share of the time that loading it takes.

    python tools/faults/checking.py FILE.spq [--rounds 5]

In each round the file's bytes go through the CRC-32 that the loaders use, and the model is loaded, packed and decoded.
Printed are processor seconds of this process: the median of the rounds' shares, the least and the largest.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import spqfmt
from spqfmt.kernels import native


def seconds(work: Callable[[], object]) -> float:
    """Return the processor time of some work, of all threads."""
    began = time.process_time()
    work()
    return time.process_time() - began


def shares(file: Path, rounds: int) -> dict[str, list[float]]:
    """Return the shares that checking had in each round, for each way to load, ascending."""
    data = np.fromfile(file, np.uint8)
    ways: dict[str, Callable[[], object]] = {
        "packed": lambda: spqfmt.load_model(file, packed=True),
        "decoded": lambda: spqfmt.load_model(file, packed=False),
    }
    found = {}
    for way, load in ways.items():
        load()
        found[way] = sorted(seconds(lambda: native.crc32(data)) / seconds(load) for _ in range(rounds))
    return found


def in_words(shares: list[float]) -> str:
    """Return the median and the spread."""
    spread = f"{min(shares):.2%} to {max(shares):.2%}, {len(shares)} rounds"
    return f"{statistics.median(shares):.2%} of loading is checking ({spread})"


def main() -> None:
    """Print a line for each way to load."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    for way, found in shares(arguments.file, arguments.rounds).items():
        print(f"{way}: {in_words(found)}", flush=True)


if __name__ == "__main__":
    main()
