"""`spqfmt inspect`: what every tensor costs."""

import fnmatch
import json
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from spqfmt.cli.units import size
from spqfmt.pipeline.report import FileReport, TensorReport, inspect_file

_SORT_KEYS = ("file", "name", "size", "bits", "ratio")


@click.command("inspect")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, nothing else.")
@click.option("--tensor", "pattern", help="Only tensors whose name matches, such as '*.mlp.*'.")
@click.option(
    "--sort",
    type=click.Choice(_SORT_KEYS),
    default="file",
    show_default=True,
    help="Order of the tensors; sizes, bits and ratios largest first.",
)
def inspect(*, file: Path, as_json: bool, pattern: str | None, sort: str) -> None:
    """Show what every tensor of FILE costs. Only the index is read.

    \b
    spqfmt inspect model.spq
    spqfmt inspect model.spq --tensor '*.down_proj.*' --sort bits
    spqfmt inspect model.spq --json
    """
    report = inspect_file(file)
    chosen = [t for t in report.tensors if pattern is None or fnmatch.fnmatchcase(t.name, pattern)]
    chosen = _sorted(chosen, sort)
    if as_json:
        click.echo(json.dumps(report.to_json() | {"tensors": [t.to_json() for t in chosen]}))
        return
    if not chosen:
        raise click.BadParameter(f"no tensor matches {pattern!r}", param_hint="--tensor")
    console = Console(width=None if Console().is_terminal else 140)
    console.print(_table(chosen, report))
    console.print(_summary(report), highlight=False)


def _sorted(tensors: list[TensorReport], key: str) -> list[TensorReport]:
    if key == "file":
        return tensors
    if key == "name":
        return sorted(tensors, key=lambda t: t.name)
    value = {"size": "stored_bytes", "bits": "bits_per_weight", "ratio": "ratio"}[key]
    return sorted(tensors, key=lambda t: -(getattr(t, value) or 0))


def _table(tensors: list[TensorReport], report: FileReport) -> Table:
    table = Table(header_style="bold", box=None, pad_edge=False)
    table.add_column("tensor", overflow="fold")
    table.add_column("shape", justify="right", no_wrap=True)
    table.add_column("scheme")
    table.add_column("codecs")
    for name in ("stored", "bits/w", "entropy", "ratio", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    for tensor in tensors:
        bound = tensor.entropy_bits_per_weight
        tied = tensor.scheme == "tied"
        table.add_row(
            escape(tensor.name),
            "x".join(map(str, tensor.shape)) or "scalar",
            tensor.scheme,
            " ".join(dict.fromkeys(stream.codec for stream in tensor.streams)),
            "" if tied else size(tensor.stored_bytes),
            "" if tied else f"{tensor.bits_per_weight:.3f}",
            "" if bound is None else f"{bound:.3f}",
            "" if tensor.ratio is None else f"{tensor.ratio:.2f}",
            "" if tied else f"{tensor.stored_bytes / report.file_bytes:.1%}",
        )
    return table


def _summary(report: FileReport) -> str:
    t = report.totals
    rest = t.index_bytes + t.header_bytes + t.trailer_bytes + t.shard_index_bytes
    return (
        f"\n{size(report.file_bytes)}: tensors {size(t.tensor_bytes)}, assets {size(t.asset_bytes)}, "
        f"index {size(rest)}, padding {size(t.padding_bytes)}\n"
        f"{t.n_weights:,} weights in {t.n_tensors} tensors, {t.bits_per_weight:.3f} bits a weight, "
        f"ratio {t.ratio:.2f} to {size(t.raw_bytes)}; format {report.format_version}, "
        f"method {escape(report.metadata.get('method', '?'))}"
    )
