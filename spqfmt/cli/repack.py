"""`spqfmt repack`: other chunks of a .spq file compressed, or by another codec."""

import json
from pathlib import Path

import click

from spqfmt.cli.failures import about
from spqfmt.cli.parameters import ALIGNMENT, ALIGNMENT_HELP, RANKS, SPQ
from spqfmt.cli.partial import BLOCK, FOR, PARTIAL, RATES, block_for
from spqfmt.cli.paths import OutputPath
from spqfmt.cli.progress import Bar
from spqfmt.cli.units import size
from spqfmt.codecs import threads
from spqfmt.codecs.registry import CHOICES
from spqfmt.rewriting.repack import repack as write_file


@click.command("repack")
@click.argument("file", type=SPQ)
@click.argument("out", type=OutputPath())
@PARTIAL
@RATES
@BLOCK
@FOR
@click.option(
    "--codec",
    type=click.Choice(CHOICES),
    help="Entropy coder of all chunks. [default: compressed ones keep theirs]",
)
@click.option(
    "--shard-size", help="Write several files of at most this size, such as 2GiB. [default: cut as FILE is]"
)
@click.option("--chunk-alignment", type=ALIGNMENT, help=f"{ALIGNMENT_HELP} [default: as in FILE]")
@RANKS
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    help="Threads that encode. [default: SPQFMT_THREADS, or as many as torch takes]",
)
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@click.option("--quiet", is_flag=True, help="No progress and no summary.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, nothing else.")
def repack(
    *,
    file: Path,
    out: Path,
    partial: str,
    rates: Path | None,
    block: str | None,
    machine: str | None,
    codec: str | None,
    shard_size: str | None,
    chunk_alignment: str | None,
    ranks: int | None,
    jobs: int | None,
    force: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Write FILE to OUT.spq with other chunks compressed, by another codec or in other blocks; nothing is quantized.

    Chunks that stay as they are are copied. FILE is an .spq file, or the .spq.index.json of a model in shards.

    \b
    spqfmt repack model.spq faster.spq --partial every:4
    spqfmt repack model.spq faster.spq --partial speed:40%
    spqfmt repack model.spq faster.spq --partial speed:25ms --rates laptop.json
    spqfmt repack faster.spq whole.spq
    spqfmt repack model.spq shared.spq --ranks 4
    spqfmt repack model.spq blocks.spq --for gpu
    """
    progress = Bar("repacking", quiet=quiet or as_json)
    with threads.jobs(jobs), about(file, out):
        report = write_file(
            file,
            out,
            partial=partial,
            codec=codec,
            rates=rates,
            shard_size=shard_size,
            chunk_alignment=chunk_alignment,
            ranks=ranks,
            block=block_for(block, machine),
            force=force,
            progress=progress,
        )
    if as_json:
        click.echo(json.dumps(report.to_json()))
    elif not quiet:
        click.echo(
            f"{report.files[-1]}: {size(report.file_bytes)} from {size(report.source_bytes)}; of {report.n_chunks} "
            f"chunks of weights {report.n_compressed} are compressed, {report.n_copied} were copied as they were; "
            f"in {report.seconds:.1f} s",
            err=True,
        )
