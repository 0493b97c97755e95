"""`spqfmt inspect`: what every tensor costs."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

import click
from rich.console import Console

from spqfmt.address import Address
from spqfmt.cli import charts
from spqfmt.cli.inspect_tables import error_of, group_table, parts_table, stream_table, summary, tensor_table
from spqfmt.cli.json_text import echo_json, shallow
from spqfmt.cli.parameters import MODEL, SPQ, complete_tensors
from spqfmt.cli.pictures import draw, html_option, png_option
from spqfmt.cli.units import matcher, printable
from spqfmt.reading.report import (
    GROUPINGS,
    FileReport,
    Grouping,
    GroupReport,
    TensorReport,
    each_group,
    inspect_file,
)
from spqfmt.reading.report.experts import experts_in

_Row: TypeAlias = TensorReport | GroupReport
_R = TypeVar("_R", TensorReport, GroupReport)


def _error(row: _Row) -> float:
    error = row.measured.error if isinstance(row, TensorReport) and row.measured else None
    return -1.0 if error is None else float("inf") if error.relative is None else error.relative


def _over(row: _Row) -> float:
    bound = row.entropy_bits_per_weight
    return row.bits_per_weight / bound if bound else 0.0


# All but the name sort the largest first.
_SORT_KEYS: dict[str, Callable[[_Row], float]] = {
    "size": lambda row: row.stored_bytes,
    "bits": lambda row: row.bits_per_weight,
    "ratio": lambda row: row.ratio or 0.0,
    "over": _over,
    "outliers": lambda row: row.outlier_share,
    "error": _error,
}


@click.command("inspect")
@click.argument("file", type=SPQ)
@click.option(
    "--by",
    type=click.Choice(["tensor", *GROUPINGS]),
    default="tensor",
    show_default=True,
    help="One row for each tensor, or for all tensors of a layer, of one kind of projection, or of a scheme.",
)
@click.option(
    "--sort",
    type=click.Choice(["file", "name", *_SORT_KEYS]),
    default="file",
    show_default=True,
    help="Order of the rows: the file's, by name, or the largest first. over: stored bits over the entropy bound.",
)
@click.option(
    "--tensor",
    "patterns",
    multiple=True,
    shell_complete=complete_tensors,
    help="Only tensors whose name matches, such as '*.mlp.*'; repeatable.",
)
@click.option(
    "--measure", is_flag=True, help="Decode the payload too: histograms of codes, maps of outliers."
)
@click.option(
    "--reference",
    type=MODEL,
    help="Measure the error against this model: a Hugging Face folder, a GGUF file or an .spq file.",
)
@html_option
@png_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, nothing else.")
@click.option("--quiet", is_flag=True, help="No progress.")
def inspect(
    *,
    file: Path,
    by: Grouping | Literal["tensor"],
    sort: str,
    patterns: tuple[str, ...],
    measure: bool,
    reference: Path | None,
    html: Path | None,
    png: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Show what every tensor of FILE costs: bits a weight beside the entropy bound, share of the file, ratio.

    The ratio says how many times smaller a tensor is than in the model's source, which for BF16 and FP16 is its ratio
    to BF16; for a source in FP32 the summary has both. Where the source has codes, rows compare with the values that
    these stand for, in 16 bits, and the summary with the source's files too. Reads the index and, but for a file at an
    address, the headers of chunks; weights are decoded with --measure or --reference only. One tensor alone is shown
    with its streams. The parts of the file add up to its bytes.

    \b
    spqfmt inspect model.spq
    spqfmt inspect model.spq --by projection --sort bits
    spqfmt inspect model.spq --tensor '*.down_proj.*' --sort over
    spqfmt inspect model.spq --tensor model.embed_tokens.weight --measure
    spqfmt inspect model.spq --reference path/to/model --sort error
    spqfmt inspect model.spq --measure --html model.html --png model.png
    spqfmt inspect https://host/model.spq --json
    """
    if sort == "error" and (reference is None or by != "tensor"):
        raise click.UsageError("--sort error needs --reference and rows by tensor")
    whole = inspect_file(file)
    report = _chosen(whole, patterns)
    if measure or reference is not None:
        from spqfmt.cli.progress import Bar
        from spqfmt.reading.measure import measure_file

        names = {tensor.name for tensor in report.tensors}
        report = measure_file(
            file, report, names=names, reference=reference, progress=Bar("measuring", quiet=quiet or as_json)
        )
    if html is not None or png is not None:
        draw(whole, report, file, html=html, png=png)
        if not as_json:
            return
    if as_json:
        groups = {key: _sorted(each_group(report.tensors, key), sort) for key in GROUPINGS}
        found = shallow(report)
        del found["tensors"]
        found |= {"experts": experts_in(whole.tensors)}
        echo_json({**found, "groups": groups, "tensors": _sorted(report.tensors, sort)})
    else:
        _show(report, by, sort, file=file, reference=reference)
        if isinstance(file, Address) and not quiet:
            click.echo(
                f"{file}: sizes of tables are not read at an address; they count for codes and scales",
                err=True,
            )


def _chosen(report: FileReport, patterns: Sequence[str]) -> FileReport:
    """The report with the tensors that match, and groups of them alone; its totals stay the file's."""
    if not patterns:
        return report
    matches = matcher(patterns)
    tensors = tuple(t for t in report.tensors if matches(t.name))
    if not tensors:
        raise click.BadParameter(
            f"no tensor matches {', '.join(patterns)}; there is {printable(report.tensors[0].name)}, for one"
            if report.tensors
            else "the file has no tensors",
            param_hint="--tensor",
        )
    return replace(report, tensors=tensors)


def _sorted(rows: Iterable[_R], key: str) -> Iterable[_R]:
    if key == "file":
        return rows
    if key == "name":
        return sorted(rows, key=lambda row: row.name)
    return sorted(rows, key=_SORT_KEYS[key], reverse=True)


def _show(
    report: FileReport, by: Grouping | Literal["tensor"], sort: str, file: Path, reference: Path | None
) -> None:
    console = Console(highlight=False)
    say = partial(console.print, markup=False, soft_wrap=True)
    if by != "tensor":
        group_table([*_sorted(each_group(report.tensors, by), sort)], by).print(console)
    elif len(report.tensors) == 1:
        _show_one(report.tensors[0], console)
    else:
        tensor_table([*_sorted(report.tensors, sort)], report.totals.n_tensors).print(console)
    say()
    if len(report.tensors) == report.totals.n_tensors:
        parts_table(report).print(console)
        say()
    say(summary(report, file.name))
    unknown = [t.name for t in report.tensors if t.measured is not None and t.measured.error is None]
    if reference is not None and unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        say(f"no error for what {reference} lacks or has in another shape: {printable(unknown[0])}{more}")


def _show_one(tensor: TensorReport, console: Console) -> None:
    say = partial(console.print, markup=False, soft_wrap=True)
    tensor_table([tensor], 1).print(console)
    say()
    stream_table(tensor).print(console)
    measured = tensor.measured
    if measured is None:
        return
    if measured.histogram is not None and measured.histogram.counts:
        say(f"\n{measured.histogram.unit:>12}  {'':48}  {'elements':>13}", style="bold")
        for line in charts.columns(measured.histogram, 32):
            say(line)
    if measured.histogram is not None and measured.histogram.n_zeros:
        say(f"{'zero':>12}  {'':48}  {measured.histogram.n_zeros:>13,}")
    grid = measured.outlier_map
    if grid is not None and tensor.outliers:
        say(
            f"\noutliers: a cell is {grid.rows_per_cell} rows (down) by {grid.columns_per_cell} stored columns "
            f"(across); the darkest has {max(map(max, grid.counts)):,}",
            style="bold",
        )
        for line in charts.shades(grid):
            say(line)
    if measured.error is not None:
        error = measured.error
        figures = "not finite" if error.rms is None else f"rms {error.rms:.6g}, largest {error.largest:.6g}"
        say(f"\nerror {error_of(tensor)} of the reference; {figures}")
