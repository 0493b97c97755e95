"""`spqfmt verify`: every byte of a file."""

import time
from pathlib import Path

import click

from spqfmt.cli.parameters import SPQ
from spqfmt.cli.progress import Bar
from spqfmt.reading.verify import verify_file


@click.command("verify")
@click.argument("file", type=SPQ)
@click.option(
    "--content",
    is_flag=True,
    help="Make the digests of what the tensors hold, and the files of the source, again too, compare them with "
    "what the file says, and print the model's digest.",
)
@click.option("--quiet", is_flag=True, help="Only the exit code.")
def verify(*, file: Path, content: bool, quiet: bool) -> None:
    """Check every checksum, chunk and rule of FILE; exit code 1 names what is wrong.

    \b
    spqfmt verify model.spq && echo sound
    spqfmt verify model.spq --content
    """
    started = time.monotonic()
    found = verify_file(file, Bar("verifying", quiet=quiet), content=content)
    if not quiet:
        if found is not None:
            click.echo(f"{found}  content")
        click.echo(f"{file}: sound ({time.monotonic() - started:.1f} s)", err=True)
