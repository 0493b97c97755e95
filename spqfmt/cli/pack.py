"""`spqfmt pack`: a model into a .spq file."""

import json
from pathlib import Path

import click

from spqfmt.cli.progress import Bar
from spqfmt.cli.units import size


@click.command("pack")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--method", default="lossless", show_default=True, help="lossless, or rtn: round to nearest.")
@click.option("--bits", type=int, help="Bits of a code, 2 to 8. [default: the method's own]")
@click.option(
    "--granularity",
    type=click.Choice(["tensor", "row", "group"]),
    help="What shares one scale. [default: row; group with --group-size]",
)
@click.option("--group-size", type=int, help="Input columns in a group. [default: 64]")
@click.option(
    "--embedding-bits", type=int, help="For embedding and head; 16 keeps them as they are. [default: 8]"
)
@click.option(
    "--codec",
    type=click.Choice(["auto", "raw", "zstd", "rans"]),
    default="auto",
    show_default=True,
    help="Entropy coder of the chunks; auto is rans where it saves 1 % or more.",
)
@click.option(
    "--partial",
    default="none",
    show_default=True,
    help="every:N compresses only the last of every N chunks of weights.",
)
@click.option("--shard-size", help="Write several files of at most this size, such as 2GiB.")
@click.option("--jobs", type=click.IntRange(min=1), help="Threads. [default: the cores at hand]")
@click.option("--dry-run", is_flag=True, help="Show what would be done with each tensor; write nothing.")
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@click.option("--quiet", is_flag=True, help="No progress and no summary.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, nothing else.")
def pack(
    *,
    source: Path,
    out: Path,
    jobs: int | None,
    dry_run: bool,
    force: bool,
    quiet: bool,
    as_json: bool,
    **options: str | int | None,
) -> None:
    """Pack SOURCE, a Hugging Face folder of safetensors or a GGUF file, into OUT.spq.

    \b
    spqfmt pack path/to/model model.spq
    spqfmt pack path/to/model model.spq --method rtn --bits 4 --group-size 64
    spqfmt pack model.gguf model.spq --method rtn --bits 8 --granularity tensor
    """
    # torch takes seconds to import: not for --help.
    from spqfmt.cli.plan_table import print_plan
    from spqfmt.codecs.threads import set_jobs
    from spqfmt.importers.registry import open_source
    from spqfmt.pipeline.options import pack_options
    from spqfmt.pipeline.pack import check_name, pack_model
    from spqfmt.pipeline.plan import plan_pack

    checked = pack_options(**options)  # type: ignore[arg-type]  # click has checked the types
    check_name(out)
    set_jobs(jobs)
    model = open_source(source)
    if dry_run:
        print_plan(plan_pack(model, checked), checked, as_json=as_json)
        return
    progress = Bar("packing", quiet=quiet or as_json)
    report = pack_model(model, out, checked, force=force, progress=progress)
    if as_json:
        click.echo(json.dumps(report.to_json()))
    elif not quiet:
        bits = 8 * report.file_bytes / report.n_weights
        click.echo(
            f"{report.files[-1]}: {size(report.file_bytes)} from {size(report.raw_bytes)} "
            f"(ratio {report.ratio:.2f}, {bits:.2f} bits a weight), "
            f"{report.n_tensors} tensors in {report.seconds:.1f} s"
        )
