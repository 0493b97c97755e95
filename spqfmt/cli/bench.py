"""`spqfmt bench`: the codec and load rates of this machine."""

import json
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from spqfmt.bench.run import FULL, QUICK, run
from spqfmt.cli.pictures import write_page
from spqfmt.pipeline.decode_rates import measure_decode_rates


@click.command()
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write one page for a browser.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, nothing else.")
@click.option("--quick", is_flag=True, help="Little data and few rounds.")
@click.option(
    "--rates", is_flag=True, help="Only decode rates, as JSON: what `--rates` of pack and repack takes."
)
@click.option("--quiet", is_flag=True, help="No progress.")
def bench(file: Path | None, html: Path | None, as_json: bool, quick: bool, rates: bool, quiet: bool) -> None:
    """Measure codecs beside their peers, and loading beside other files.

    On built-in data or, with FILE, on that file's own streams.

    \b
    spqfmt bench --quick
    spqfmt bench model.spq --json
    spqfmt bench --html bench.html
    spqfmt bench --rates > laptop.json
    """
    if rates:
        click.echo(json.dumps(measure_decode_rates().to_json()))
        return
    stderr = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(
        *columns, console=stderr, transient=True, disable=quiet or not stderr.is_terminal
    ) as progress:
        task = progress.add_task("bench")
        report = run(file, QUICK if quick else FULL, lambda what: progress.update(task, description=what))
    if html is not None:
        from spqfmt.pages.bench import bench_page

        write_page(html, bench_page(report, "spqfmt bench" if file is None else f"Streams of {file.name}"))
    if as_json:
        click.echo(json.dumps(report.to_json()))
    elif html is None:
        report.print(Console())
