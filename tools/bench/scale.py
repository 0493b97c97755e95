"""What larger models would take to pack, by arithmetic from rates that were measured on a small one.

python tools/bench/scale.py [--docs docs/scale.md]

`MEASURED` are figures of tools/bench/together_rates.py and of `spqfmt pack` on models of tools/models/synthetic.py;
docs/scale.md says on which machine. With --docs the table is put into that file.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

BEGIN, END = "<!-- table: scale -->", "<!-- end -->"
CORES = 64
"""Cores of all processes, in the table: 8 processes of 8."""
DISK_BYTES_PER_S = 1e9
BASE_BYTES, TENSORS_HELD = 0.3e9, 12.5
"""Peak memory of a process: so much, and so many times the largest tensor's bytes. See docs/scale.md."""


@dataclass(frozen=True)
class Measured:
    """Processor seconds for a GB of BF16 source, and stored bits of a weight."""

    method: str
    cpu_s_per_gb: float
    bits: float
    takes_several: bool


@dataclass(frozen=True)
class Shape:
    """Weights of a model, and the shape of its largest tensor."""

    name: str
    n_weights: float
    largest: tuple[int, int]


MEASURED = (
    Measured("lossless", cpu_s_per_gb=4.7, bits=10.63, takes_several=True),
    Measured("rtn, 4 bits in groups of 64", cpu_s_per_gb=9.9, bits=4.02, takes_several=True),
    Measured("ecq, 3 bits, --no-calibration", cpu_s_per_gb=118.0, bits=3.0, takes_several=False),
)
SHAPES = (
    Shape("7B", 6.74e9, (32000, 4096)),
    Shape("70B", 70.6e9, (128256, 8192)),
    Shape("671B", 671e9, (129280, 7168)),
)


def rows() -> list[str]:
    """The table, of one line for each model and method."""
    found = [
        f"| model | method | processor hours | minutes on {CORES} cores | minutes of disk | stored | a process holds |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for shape in SHAPES:
        source = 2 * shape.n_weights
        for of in MEASURED:
            hours = source / 1e9 * of.cpu_s_per_gb / 3600
            stored = shape.n_weights * of.bits / 8
            disk = (2 * source + stored) / DISK_BYTES_PER_S / 60
            memory = BASE_BYTES + TENSORS_HELD * 2 * shape.largest[0] * shape.largest[1]
            on_many = f"{60 * hours / CORES:.1f}" if of.takes_several else "one process"
            held = f"{memory / 1e9:.1f} GB" if of.takes_several else "not computed"
            times = f"{hours:.2f} | {on_many} | {disk:.1f}"
            found.append(f"| {shape.name} | {of.method} | {times} | {stored / 1e9:.0f} GB | {held} |")
    return found


def main() -> None:
    """Run the tool, whose help is the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--docs", type=Path)
    arguments = parser.parse_args()
    table = "\n".join(rows())
    if arguments.docs is None:
        print(table)
        return
    text = arguments.docs.read_text("utf-8")
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    arguments.docs.write_text(f"{head}{BEGIN}\n{table}\n{END}{tail}", "utf-8")


if __name__ == "__main__":
    main()
