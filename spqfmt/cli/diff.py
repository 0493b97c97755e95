"""`spqfmt diff`: two files of one model side by side."""

from collections import Counter
from pathlib import Path

import click
from rich.console import Console

from spqfmt.cli.json_text import echo_json
from spqfmt.cli.parameters import SPQ, complete_tensors
from spqfmt.cli.progress import Bar
from spqfmt.cli.table import Column, Table
from spqfmt.cli.units import change, matcher, printable, relative_error, size
from spqfmt.reading.diff import (
    DTYPE,
    EQUAL,
    INPUT,
    ONLY_FIRST,
    ONLY_SECOND,
    SHAPE,
    WEIGHTS,
    DiffReport,
    TensorDiff,
    diff_files,
)
from spqfmt.reading.report import TensorReport


@click.command("diff")
@click.argument("first", type=SPQ)
@click.argument("second", type=SPQ)
@click.option(
    "--error", is_flag=True, help="Relative error of each tensor of SECOND against FIRST, worst first."
)
@click.option(
    "--tensor",
    "patterns",
    multiple=True,
    shell_complete=complete_tensors,
    help="Only tensors whose name matches, such as '*.mlp.*', and no assets; repeatable.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, nothing else.")
@click.option("--quiet", is_flag=True, help="Only the exit code.")
@click.pass_context
def diff(
    ctx: click.Context,
    /,
    *,
    first: Path,
    second: Path,
    error: bool,
    patterns: tuple[str, ...],
    as_json: bool,
    quiet: bool,
) -> None:
    """Compare the .spq files FIRST and SECOND: sizes and bits of each tensor, and whether they restore the same model.

    Exit code 0 only when they are equal: the same tensors, restored to the same bits, and the same assets. How they
    are stored makes no difference: another codec, another order, other shards. Exit code 1 otherwise.

    \b
    spqfmt diff lossless.spq int8.spq --error
    spqfmt diff model.spq repacked.spq && echo the same model
    spqfmt diff int8.spq int4.spq --tensor '*.mlp.*' --json
    """
    report = diff_files(
        first,
        second,
        matches=matcher(patterns) if patterns else None,
        error=error,
        progress=Bar("comparing", quiet=quiet or as_json),
    )
    if as_json:
        echo_json(report.without_tensors() | {"tensors": report.tensors})
    elif not quiet:
        _show(report, first, second, error=error)
    ctx.exit(0 if report.equal else 1)


def _show(report: DiffReport, first: Path, second: Path, *, error: bool) -> None:
    console = Console(highlight=False)
    tensors = sorted(report.tensors, key=_badness, reverse=True) if error else report.tensors
    titles = (
        Column("tensor"), Column("difference", left=True), Column("first", spare=3), Column("second", spare=3),
        Column("change"), Column("bits/w of first", spare=1), Column("bits/w of second"),
        Column("error"), Column("largest error", spare=2),
    )  # fmt: skip
    Table(titles, [_row(tensor) for tensor in tensors]).print(console)
    click.echo()
    names = [printable(str(path)) for path in (first, second)]
    sizes = report.first.file_bytes, report.second.file_bytes
    click.echo(
        f"{names[0]}: {size(sizes[0])}, {report.first.totals.bits_per_weight:.3f} bits a weight; "
        f"{names[1]}: {size(sizes[1])}, {report.second.totals.bits_per_weight:.3f} bits a weight; "
        f"{change(sizes[1] / sizes[0] - 1)}"
    )
    if report.equal:
        click.echo("equal: the same tensors, restored to the same bits, and the same assets")
        return
    counts = Counter(tensor.difference for tensor in tensors)
    told = [f"{counts[difference]} {text}" for difference, text in _TOLD.items() if counts[difference]]
    click.echo(f"different: of {len(tensors)} tensors {', '.join(told)}")
    for name, difference in report.assets.items():
        click.echo(f"asset {printable(name)}: {'other contents' if difference == 'contents' else difference}")


_TOLD = {
    WEIGHTS: "with other weights",
    SHAPE: "with another shape",
    DTYPE: "with another dtype",
    INPUT: "whose layer treats its input in another way",
    ONLY_FIRST: ONLY_FIRST,
    ONLY_SECOND: ONLY_SECOND,
    EQUAL: EQUAL,
}


def _badness(tensor: TensorDiff) -> float:
    """The worst first: what cannot be compared, then by relative error."""
    if tensor.error is None or (tensor.error.relative is None):
        return float("inf")
    return tensor.error.relative


def _row(tensor: TensorDiff) -> list[str]:
    a, b, error = tensor.first, tensor.second, tensor.error
    relative = None if error is None else error.relative
    return [
        printable(tensor.name),
        "" if tensor.difference == EQUAL else tensor.difference,
        _size(a),
        _size(b),
        _change(a, b),
        _bits(a),
        _bits(b),
        "" if error is None else "not finite" if error.rms is None else "of zeros" if relative is None
        else relative_error(relative),
        "" if error is None or not error.largest else f"{error.largest:.4g}",
    ]  # fmt: skip


def _size(tensor: TensorReport | None) -> str:
    return "" if tensor is None else "tied" if tensor.tied_to else size(tensor.stored_bytes)


def _change(a: TensorReport | None, b: TensorReport | None) -> str:
    if a is None or b is None or not a.stored_bytes or a.stored_bytes == b.stored_bytes:
        return ""
    return change(b.stored_bytes / a.stored_bytes - 1)


def _bits(tensor: TensorReport | None) -> str:
    return "" if tensor is None or not tensor.n_weights else f"{tensor.bits_per_weight:.3f}"
