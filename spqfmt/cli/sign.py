"""`spqfmt sign`: a signature beside a model."""

from pathlib import Path

import click

from spqfmt.cli.failures import about
from spqfmt.cli.parameters import LOCAL_SPQ
from spqfmt.cli.paths import InputPath, OutputPath
from spqfmt.cli.progress import Bar
from spqfmt.container.temporary import discard, open_temporary, publish, refuse_existing
from spqfmt.errors import OptionError


@click.command("sign")
@click.argument("file", type=LOCAL_SPQ)
@click.option(
    "--key",
    type=InputPath(),
    required=True,
    help="Private key of ed25519, PEM or OpenSSH, without a password.",
)
@click.option("--out", type=OutputPath(), help="Where the signature goes. [default: FILE.sig]")
@click.option("--force", is_flag=True, help="Replace the signature if it exists.")
@click.option("--quiet", is_flag=True, help="No progress and no summary.")
def sign(*, file: Path, key: Path, out: Path | None, force: bool, quiet: bool) -> None:
    """Check FILE as `verify --content` does, and write a signature of it beside it.

    It is of the bytes of FILE (of all shards, for a .spq.index.json), of its index and of the weights' content
    digest; `spqfmt verify --key` checks it. SECURITY.md says what it promises.

    \b
    spqfmt sign model.spq --key key.pem
    openssl genpkey -algorithm ed25519 -out key.pem && openssl pkey -in key.pem -pubout -out key.pub
    """
    from spqfmt.reading.signature import is_signature, signature_path
    from spqfmt.reading.signature import sign as signature_of

    out = out or signature_path(file)
    with about(file, out):
        refuse_existing(out, force)
        if out.exists() and not is_signature(out):
            raise OptionError(
                "exists and is no signature, which is all that --force replaces; give another --out"
            )
        with about(key):
            data = key.read_bytes()
        made = signature_of(file, data, Bar("checking", quiet=quiet))
        temporary, opened = open_temporary(out)
        try:
            with opened:
                opened.write(made)
            publish(temporary, out, force=force)
        finally:
            discard(temporary)
    if not quiet:
        click.echo(f"{out}: signature of {file.name}", err=True)
