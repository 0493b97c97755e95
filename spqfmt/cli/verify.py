"""`spqfmt verify`: every byte of a file."""

import time
from contextlib import nullcontext
from pathlib import Path

import click

from spqfmt.address import Address
from spqfmt.cli.failures import about
from spqfmt.cli.parameters import SPQ_OR_PIPE
from spqfmt.cli.paths import PIPE, InputPath
from spqfmt.cli.pipes import stdin_file
from spqfmt.cli.progress import Bar
from spqfmt.errors import OptionError, SpqError
from spqfmt.reading.verify import verify_file


@click.command("verify")
@click.argument("file", type=SPQ_OR_PIPE)
@click.option(
    "--content",
    is_flag=True,
    help="Make the digests of what the tensors hold, and the files of the source, again too, compare them with "
    "what the file says, and print the model's digest.",
)
@click.option(
    "--key", type=InputPath(), help="Public key of ed25519: check that its holder signed FILE, too."
)
@click.option(
    "--signature", type=InputPath(), help="The signature that --key is held against. [default: FILE.sig]"
)
@click.option("--quiet", is_flag=True, help="Only the exit code.")
def verify(*, file: Path, content: bool, key: Path | None, signature: Path | None, quiet: bool) -> None:
    """Check every checksum, chunk and rule of FILE; exit code 1 names what is wrong.

    FILE may be -, for what comes through a pipe: it is kept in a temporary file meanwhile, since the index is its end.

    \b
    spqfmt verify model.spq && echo sound
    spqfmt verify model.spq --content
    spqfmt verify model.spq --key key.pub
    spqfmt verify - < model.spq
    """
    started = time.monotonic()
    if key is None and signature is not None:
        raise OptionError("--signature is checked with --key, the public key of whoever made it")
    if key is not None and isinstance(file, Address):
        raise OptionError(f"{file}: --key is for files of this machine; download it and its signature")
    if key is not None and signature is None and file == PIPE:
        raise OptionError("-: nothing lies beside stdin; --signature names the signature for --key")
    with stdin_file() if file == PIPE else nullcontext(file) as path:
        if key is None:
            found = verify_file(path, Bar("verifying", quiet=quiet), content=content)
        else:
            found = _verify_signed(path, key, signature, quiet=quiet)
    if not quiet:
        if found is not None and (content or key is None):
            click.echo(f"{found}  content")
        said = "sound" if key is None else f"sound, and signed by the key in {key}"
        click.echo(
            f"{'stdin' if file == PIPE else file}: {said} ({time.monotonic() - started:.1f} s)", err=True
        )


def _verify_signed(file: Path, key: Path, signature: Path | None, *, quiet: bool) -> str:
    from spqfmt.reading.signature import signature_path, verify_signature

    beside = signature or signature_path(file)
    if not beside.exists():
        raise SpqError(
            f"{beside}: no such file; {file.name} has no signature beside it, --signature names one"
        )
    with about(beside):
        with about(key):
            public = key.read_bytes()
        return verify_signature(file, beside.read_bytes(), public, Bar("verifying", quiet=quiet))
