"""PackedLinear beside torch's BF16 nn.Linear: the layers of a packed model, with the same threads.

python tools/bench/linear_rates.py MODEL.spq [--threads N] [--tokens 1,2,3,4,8,16,32,128] [--rounds 61] [--json]

One layer of each shape is measured, all decoded: with BF16 activations (`activations="float"`), as it is where nobody
says, and, where codes are integers, with tokens rounded to INT8. All run in one process, one after the other in each
round; the table has medians in microseconds with their quartiles, and how many times faster than nn.Linear that is.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import spqfmt
from spqfmt.loaders.packed import PackedLinear


class Quartiles(NamedTuple):
    """How many seconds some rounds took: the lower quartile, the median, the upper one."""

    low: float
    middle: float
    high: float


@dataclass(frozen=True)
class Row:
    """Seconds for one shape and number of tokens, each quartiles; `int8_s` None where codes are not integers."""

    layer: str
    n_rows: int
    n_columns: int
    tokens: int
    bf16_s: Quartiles
    float_s: Quartiles
    default_s: Quartiles
    int8_s: Quartiles | None


def quartiles(work: Sequence[Callable[[], object]], rounds: int) -> list[Quartiles]:
    """Time the pieces of work interleaved; the seconds of each."""
    seconds: list[list[float]] = [[] for _ in work]
    for run in work:
        run()
    for _ in range(rounds):
        for run, taken in zip(work, seconds, strict=True):
            started = time.perf_counter()
            run()
            taken.append(time.perf_counter() - started)
    return [Quartiles(*statistics.quantiles(taken, n=4)) for taken in seconds]


def one_of_each(model: Any) -> Iterator[tuple[str, PackedLinear]]:
    """The first packed layer of each shape."""
    seen = set()
    for name, module in model.named_modules():
        if isinstance(module, PackedLinear) and module.record.matrix_shape not in seen:
            seen.add(module.record.matrix_shape)
            yield name, module


def measure(path: Path, tokens: Sequence[int], rounds: int) -> Iterator[Row]:
    """Measure the rows of all shapes."""
    floating, _ = spqfmt.load_model(path, dtype="bfloat16", packed=True, activations="float")
    default, _ = spqfmt.load_model(path, dtype="bfloat16", packed=True)
    rounded, _ = spqfmt.load_model(path, dtype="bfloat16", packed=True, activations="int8")
    for name, layer in one_of_each(floating):
        n_rows, n_columns = layer.record.matrix_shape
        plain = nn.Linear(n_columns, n_rows, bias=layer.bias is not None, dtype=torch.bfloat16)
        layers: list[nn.Module] = [plain, layer, default.get_submodule(name)]
        if (other := rounded.get_submodule(name)).int8_activations:
            layers.append(other)
        for n in tokens:
            x = torch.randn(1, n, n_columns, dtype=torch.bfloat16)
            work = [lambda module=module, x=x: module(x) for module in layers]
            found = quartiles(work, rounds)
            yield Row(
                layer=name,
                n_rows=n_rows,
                n_columns=n_columns,
                tokens=n,
                bf16_s=found[0],
                float_s=found[1],
                default_s=found[2],
                int8_s=found[3] if len(found) > 3 else None,
            )


def shown(seconds: Quartiles) -> str:
    """Microseconds, with the quartiles."""
    low, middle, high = (f"{value * 1e6:.0f}" for value in seconds)
    return f"{middle} ({low}-{high})"


def main() -> None:
    """Run the tool, whose help is the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tokens", default="1,2,3,4,8,16,32,128")
    parser.add_argument("--rounds", type=int, default=61)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with torch.inference_mode():
        rows = list(measure(arguments.file, [int(n) for n in arguments.tokens.split(",")], arguments.rounds))
    if arguments.json:
        print(json.dumps({"threads": arguments.threads, "rows": [asdict(row) for row in rows]}))
        return
    table = Table(
        "rows x columns", "tokens", "BF16 us", "float us", "times", "default us", "times", "INT8 us", "times"
    )
    for row in rows:
        cells = [f"{row.n_rows} x {row.n_columns}", str(row.tokens), shown(row.bf16_s)]
        for seconds in (row.float_s, row.default_s, row.int8_s):
            times = "" if seconds is None else f"{row.bf16_s.middle / seconds.middle:.2f}"
            cells += ["" if seconds is None else shown(seconds), times]
        table.add_row(*cells)
    Console().print(f"{arguments.threads} threads, median of {arguments.rounds} rounds", table)


if __name__ == "__main__":
    main()
