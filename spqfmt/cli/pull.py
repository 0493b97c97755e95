"""`spqfmt pull`: a packed model from a hub."""

from pathlib import Path

import click

from spqfmt.cli.failures import about
from spqfmt.cli.hub import HubParameter, shows_bars
from spqfmt.cli.paths import OutputPath
from spqfmt.cli.progress import Bar
from spqfmt.hub.names import HubName

_PULLED = ".cache/huggingface"


@click.command("pull")
@click.argument("name", type=HubParameter())
@click.argument("folder", required=False, type=OutputPath(folders=True))
@click.option("--no-verify", is_flag=True, help="Do not check every byte of what came.")
@click.option("--quiet", is_flag=True, help="No progress and no summary.")
def pull(*, name: HubName, folder: Path | None, no_verify: bool, quiet: bool) -> None:
    """Fetch the packed model NAME (OWNER/NAME, OWNER/NAME@REVISION or OWNER/NAME/FILE.spq) into FOLDER.

    Its small files come with it, so that from_pretrained takes the folder. FOLDER is the model's name where none is
    given. What is there from an earlier pull and has not changed is not fetched again. HF_TOKEN, HF_ENDPOINT and the
    token of `hf auth login` count.

    \b
    spqfmt pull owner/model-spq
    spqfmt pull owner/model-spq@v1.0 folder
    """
    from spqfmt.hub import fetch_packed
    from spqfmt.reading.verify import verify_file

    out = folder or Path(name.repository.partition("/")[2])
    if out.exists() and not (out / _PULLED).is_dir() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out}: is there already, and not from a pull; give another folder")
    models = fetch_packed(name, out, shows=shows_bars(quiet=quiet))
    for model in models:
        path = out / model
        with about(path):
            if not no_verify:
                verify_file(path, Bar("verifying", quiet=quiet))
        if not quiet:
            click.echo(f"{path}: {'fetched' if no_verify else 'sound'}", err=True)
