"""The results of a bench run as one JSON object and as tables."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from spqfmt.bench.rows import CodecRow, LoadRow, Rate, RunRow


@dataclass(frozen=True)
class Report:
    """All that a run measured. `missing`: peer -> why it did not run. Rates are millions of symbols a second."""

    machine: Mapping[str, object]
    rounds: int
    codecs: Sequence[CodecRow]
    load: Sequence[LoadRow]
    missing: Mapping[str, str] = field(default_factory=dict)
    run: Sequence[RunRow] = ()

    def to_json(self) -> dict[str, object]:
        """The object of `bench --json`; a `_range` is [slowest, fastest] over the rounds."""
        return {
            "machine": dict(self.machine),
            "rounds": self.rounds,
            "codecs": [_codec_json(row) for row in self.codecs],
            "load": [_load_json(row) for row in self.load],
            "run": [_run_json(row) for row in self.run],
            "missing": dict(self.missing),
        }

    def print(self, console: Console) -> None:
        """Write the tables to a terminal or pipe."""
        described = (f"{key} {value}" for key, value in self.machine.items() if key != "packages")
        console.print(", ".join(described), style="dim", highlight=False)
        if self.codecs or self.load:
            words = "Rates are million symbols a second: median of the rounds, ± half the spread."
            console.print(words, style="dim")
        for data, rows in groupby(self.codecs, lambda row: row.data):
            console.print(_codec_table(data, list(rows)))
        if self.load:
            console.print(_load_table(self.load))
        for workload, runs in groupby(self.run, lambda row: row.workload):
            console.print(_run_table(workload, runs))
        if self.run:
            console.print(
                "Expected: load, decode, compute (Double Compression's model; compute as measured decoded), one after "
                "the other and overlapped. Memory: what the process had more than before it loaded the model, at most.",
                style="dim",
            )
        for name, reason in self.missing.items():
            console.print(f"{name} was not measured: {reason}", style="yellow", highlight=False)


def _codec_json(row: CodecRow) -> dict[str, object]:
    return {
        "data": row.data,
        "codec": row.codec,
        "path": row.path,
        "block_bytes": row.block_bytes,
        "threads": row.threads,
        "layout": row.layout,
        "encode_msymbols_s": round(row.encode.median, 1),
        "encode_range": [round(row.encode.low, 1), round(row.encode.high, 1)],
        "decode_msymbols_s": round(row.decode.median, 1),
        "decode_range": [round(row.decode.low, 1), round(row.decode.high, 1)],
        "bits_per_symbol": round(row.bits_per_symbol, 4),
        "entropy": round(row.entropy, 4),
    }


def _load_json(row: LoadRow) -> dict[str, object]:
    return {
        "data": row.data,
        "container": row.container,
        "cache": row.cache,
        "threads": row.threads,
        "file_bytes": row.file_bytes,
        "load_msymbols_s": round(row.load.median, 1),
        "load_range": [round(row.load.low, 1), round(row.load.high, 1)],
    }


def _run_json(row: RunRow) -> dict[str, object]:
    expected = None
    if row.latency is not None:
        expected = {
            "load_ms": round(row.latency.load_ms, 3),
            "decode_ms": round(row.latency.decode_ms, 3),
            "compute_ms": round(row.latency.compute_ms, 3),
            "serial_tokens_s": round(row.serial_tokens_s or 0, 2),
            "overlapped_tokens_s": round(row.overlapped_tokens_s or 0, 2),
        }
    return {
        "data": row.data,
        "configuration": row.configuration,
        "workload": row.workload,
        "tokens_s": round(row.rate.median, 2),
        "tokens_s_range": [round(row.rate.low, 2), round(row.rate.high, 2)],
        "peak_bytes": row.peak_bytes,
        "memory_bytes": row.memory_bytes,
        "weights_bytes": row.weights_bytes,
        "expected": expected,
    }


def _codec_table(data: str, rows: Iterable[CodecRow]) -> Table:
    rows = sorted(rows, key=lambda row: (row.threads, -row.decode.median))
    table = _table(
        f"{data}: order-0 entropy {rows[0].entropy:.3f} bits a symbol",
        left=("coder",),
        right=("threads", "bits", "over", "encode", "", "decode", ""),
    )
    for row in rows:
        block = f" {row.block_bytes >> 10} KiB" if row.block_bytes else ""
        table.add_row(
            f"{row.codec} {row.path}{block}",
            str(row.threads),
            f"{row.bits_per_symbol:.3f}",
            f"{100 * (row.bits_per_symbol / row.entropy - 1):+.2f} %",
            *_rate_cells(row.encode),
            *_rate_cells(row.decode),
            style="bold" if row.codec == "rans" else None,
        )
    return table


def _load_table(rows: Iterable[LoadRow]) -> Table:
    table = _table("load", left=("data", "container", "cache"), right=("threads", "file", "load", ""))
    for row in rows:
        table.add_row(
            row.data,
            row.container,
            row.cache,
            str(row.threads),
            f"{row.file_bytes / 1e6:.1f} MB",
            *_rate_cells(row.load),
            style="bold" if row.container == "spq" else None,
        )
    return table


def _run_table(workload: str, rows: Iterable[RunRow]) -> Table:
    table = _table(
        f"run: {workload}",
        left=("configuration",),
        right=("weights", "memory", "tokens/s", "", "serial", "overlapped"),
    )
    for row in rows:
        table.add_row(
            row.configuration,
            f"{row.weights_bytes / 1e6:.1f} MB",
            f"{row.memory_bytes / 1e6:.0f} MB",
            f"{row.rate.median:,.1f}",
            _rate_cells(row.rate)[1],
            "" if row.serial_tokens_s is None else f"{row.serial_tokens_s:,.1f}",
            "" if row.overlapped_tokens_s is None else f"{row.overlapped_tokens_s:,.1f}",
        )
    return table


def _table(title: str, left: Iterable[str], right: Iterable[str]) -> Table:
    """An empty table that is narrow enough for 80 columns."""
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for name in left:
        table.add_column(name, no_wrap=True)
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _rate_cells(rate: Rate) -> tuple[str, str]:
    """The median, and half the distance between slowest and fastest in parts of it."""
    return f"{rate.median:,.0f}", f"± {50 * (rate.high - rate.low) / rate.median:.0f} %"
