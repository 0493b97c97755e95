"""`spqfmt bench`: the codec and load rates of this machine."""

import json
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from spqfmt.bench.run import FULL, QUICK, Kind, run
from spqfmt.cli.parameters import LOCAL_SPQ
from spqfmt.cli.pictures import html_option, write_page
from spqfmt.residency.decode_rates import measure_decode_rates


@click.command()
@click.argument("file", required=False, type=LOCAL_SPQ)
@html_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, nothing else.")
@click.option("--quick", is_flag=True, help="Little data and few rounds.")
@click.option(
    "--only",
    type=click.Choice(["codecs", "load", "run"]),
    help="Only rows of this kind. run: tokens a second and memory of the model in FILE.",
)
@click.option(
    "--rates",
    is_flag=True,
    help="Only how fast this machine decodes, as one JSON object: the file that --rates of pack and repack takes.",
)
@click.option("--quiet", is_flag=True, help="No progress.")
def bench(
    *,
    file: Path | None,
    html: Path | None,
    as_json: bool,
    quick: bool,
    only: Kind | None,
    rates: bool,
    quiet: bool,
) -> None:
    """Measure codecs beside their peers, loading beside other files, and running a model in less and less memory.

    On built-in data or, with FILE, on that file's own streams; the model in FILE is run decoded, compressed, under
    ceilings and from disk, beside BF16 transformers, each in a process of its own. Takes some minutes, with --quick
    less than one.

    \b
    spqfmt bench --quick
    spqfmt bench model.spq --json
    spqfmt bench model.spq --only run
    spqfmt bench --html bench.html
    spqfmt bench --rates > laptop.json
    """
    if rates:
        others = {"FILE": file, "--html": html, "--quick": quick, "--only": only}
        if given := [name for name, value in others.items() if value]:
            raise click.UsageError(f"--rates measures decode rates alone; leave out {' and '.join(given)}")
        click.echo(json.dumps(measure_decode_rates().to_json()))
        return
    if only == "run" and file is None:
        raise click.UsageError("--only run needs a FILE, the model to run")
    stderr = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(
        *columns, console=stderr, transient=True, disable=quiet or not stderr.is_terminal
    ) as progress:
        task = progress.add_task("bench")
        scale = QUICK if quick else FULL
        report = run(file, scale, lambda what: progress.update(task, description=what), only)
    if html is not None:
        from spqfmt.pages.bench import bench_page

        write_page(html, bench_page(report, "spqfmt bench" if file is None else f"Streams of {file.name}"))
    if as_json:
        click.echo(json.dumps(report.to_json()))
    elif html is None:
        report.print(Console())
