"""`spqfmt push`: a packed model to a hub."""

import json
from pathlib import Path
from typing import Any

import click

from spqfmt.cli.failures import about
from spqfmt.cli.hub import HubParameter, shows_bars
from spqfmt.cli.paths import InputPath
from spqfmt.cli.units import size
from spqfmt.errors import OptionError
from spqfmt.hub.names import HubName
from spqfmt.stand_ins import read_text


@click.command("push")
@click.argument("path", type=InputPath(folders=True))
@click.argument("name", type=HubParameter(plain=True))
@click.option("--private", is_flag=True, help="Where the repository is made: for its owner alone.")
@click.option("--message", help="Of the commit. [default: Upload FILE with spqfmt]")
@click.option(
    "--evaluation", type=InputPath(), help="What `spqfmt eval --json` printed of it, for the model card."
)
@click.option("--dry-run", is_flag=True, help="Print the model card, send nothing.")
@click.option("--quiet", is_flag=True, help="No progress and no summary.")
def push(
    *,
    path: Path,
    name: HubName,
    private: bool,
    message: str | None,
    evaluation: Path | None,
    dry_run: bool,
    quiet: bool,
) -> None:
    """Send PATH, a .spq file or a folder with one (`spqfmt unpack --keep-packed`), to NAME (OWNER/NAME[@BRANCH]).

    The repository is made where there is none. All goes in one commit, with a README.md that says what is packed and
    how to load it, below what the card there or the source's own says. HF_TOKEN, HF_ENDPOINT and the token of
    `hf auth login` count.

    \b
    spqfmt push model.spq owner/model-spq --private
    spqfmt push packed-folder owner/model-spq --evaluation eval.json
    """
    from spqfmt.hub import card_there, send
    from spqfmt.reading.card import CARD, PackedFiles

    with about(path):
        packed = PackedFiles(path)
    found = None if evaluation is None else _evaluation(evaluation)
    card = packed.card(None if dry_run else card_there(name), repository=name.repository, evaluation=found)
    if dry_run:
        click.echo(card, nl=False)
        return
    files: dict[str, Path | bytes] = {**packed.files, CARD: card.encode()}
    done = send(
        name,
        files,
        message=message or f"Upload {packed.names[0]} with spqfmt",
        private=private,
        shows=shows_bars(quiet=quiet),
    )
    if not quiet:
        click.echo(f"{done.address}: {len(done.names)} files, {size(done.n_bytes)}", err=True)


def _evaluation(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_text(path))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise OptionError(f"{path}: not what `spqfmt eval --json` prints")
    return found
