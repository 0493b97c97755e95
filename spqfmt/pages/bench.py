"""The page of `spqfmt bench --html`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeAlias

from spqfmt.bench.report import Report
from spqfmt.bench.rows import CodecRow, LoadRow, Rate, RunRow
from spqfmt.pages.render import render
from spqfmt.pages.text import change, integer, size

_Measured: TypeAlias = CodecRow | LoadRow | RunRow


@dataclass(frozen=True)
class _TableCell:
    median: str
    spread: str
    width: float
    fill: str


@dataclass(frozen=True)
class _Row:
    words: Sequence[str]
    rates: Sequence[_TableCell]
    ours: bool


@dataclass(frozen=True)
class _Table:
    """`n_words` columns on the left are words, the others numbers. A phone has no room for column `aside`."""

    title: str
    note: str
    heads: Sequence[str]
    n_words: int
    rates: Sequence[str]
    rows: Sequence[_Row]
    aside: int | None = None


def bench_page(report: Report, title: str) -> str:
    """The page of a run on the data that `title` names."""
    tables = [_codecs(data, list(rows)) for data, rows in groupby(report.codecs, lambda row: row.data)]
    tables += [_load(data, list(rows)) for data, rows in groupby(report.load, lambda row: row.data)]
    tables += [_run(workload, list(runs)) for workload, runs in groupby(report.run, lambda row: row.workload)]
    return render(
        "bench.html",
        title=title,
        rounds=report.rounds,
        machine=_machine(report.machine),
        tables=tables,
        missing=sorted(report.missing.items()),
    )


def _machine(machine: Mapping[str, object]) -> list[tuple[str, str]]:
    words = {key: value for key, value in machine.items() if key != "packages"}
    return [(key.replace("_", " "), str(value)) for key, value in words.items()]


def _codecs(data: str, rows: list[CodecRow]) -> _Table:
    rows = sorted(rows, key=lambda row: (row.threads, -row.decode.median))
    entropy = rows[0].entropy
    encode, decode = _cells(rows, [r.encode for r in rows]), _cells(rows, [r.decode for r in rows])
    return _Table(
        title=data,
        note=f"Order-0 entropy {entropy:.3f} bits a symbol.",
        heads=("coder", "threads", "bits", "over"),
        n_words=1,
        rates=("encode", "decode"),
        rows=[
            _Row(
                (
                    f"{row.codec} {row.path}{f' {row.block_bytes >> 10} KiB' if row.block_bytes else ''}",
                    str(row.threads),
                    f"{row.bits_per_symbol:.3f}",
                    change(row.bits_per_symbol / entropy - 1),
                ),
                rates,
                _is_ours(row),
            )
            for row, *rates in zip(rows, encode, decode, strict=True)
        ],
    )


def _load(data: str, rows: list[LoadRow]) -> _Table:
    rows = sorted(rows, key=lambda row: (row.cache, row.threads, -row.load.median))
    return _Table(
        title=f"Loading {data}",
        note="From the file to decoded memory; cold: dropped from the page cache before.",
        heads=("format", "cache", "threads", "file"),
        n_words=2,
        rates=("load",),
        rows=[
            _Row(
                (row.container, row.cache, str(row.threads), size(row.file_bytes)),
                [cell],
                _is_ours(row),
            )
            for row, cell in zip(rows, _cells(rows, [row.load for row in rows]), strict=True)
        ],
    )


def _run(workload: str, rows: list[RunRow]) -> _Table:
    return _Table(
        title=f"Running: {workload}",
        note="Tokens a second. Memory: what the process had more than before it loaded the model, at most. Expected: "
        "by reading, decoding and computing one after the other, to all of it overlapped.",
        heads=("configuration", "weights", "memory", "expected"),
        n_words=1,
        rates=("tokens",),
        rows=[
            _Row(
                (
                    row.configuration,
                    size(row.weights_bytes),
                    size(row.memory_bytes),
                    ""
                    if row.serial_tokens_s is None or row.overlapped_tokens_s is None
                    else f"{row.serial_tokens_s:,.1f} to {row.overlapped_tokens_s:,.1f}",
                ),
                [cell],
                _is_ours(row),
            )
            for row, cell in zip(rows, _cells(rows, [row.rate for row in rows]), strict=True)
        ],
        aside=3,
    )


def _is_ours(row: _Measured) -> bool:
    if isinstance(row, CodecRow):
        return row.codec == "rans"
    return row.container.startswith("spq") if isinstance(row, LoadRow) else row.latency is not None


def _is_copy(row: _Measured) -> bool:
    name = row.codec if isinstance(row, CodecRow) else row.container if isinstance(row, LoadRow) else ""
    return name in {"memcpy", "raw bytes"}


def _cells(rows: Sequence[_Measured], rates: Sequence[Rate]) -> list[_TableCell]:
    """Medians, as bars beside the fastest coder of a column; a copy, which codes nothing, has none."""
    coded = [not _is_copy(row) for row in rows]
    fastest = max((rate.median for rate, codes in zip(rates, coded, strict=True) if codes), default=1.0)
    return [
        _TableCell(
            integer(round(rate.median)) if rate.median >= 100 else f"{rate.median:.1f}",
            f"± {50 * (rate.high - rate.low) / rate.median:.0f} %",
            100 * rate.median / fastest if codes else 0.0,
            "accent-fill" if _is_ours(row) else "peer-fill",
        )
        for row, rate, codes in zip(rows, rates, coded, strict=True)
    ]
