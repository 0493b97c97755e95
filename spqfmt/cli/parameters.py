"""Arguments that several commands take, with what a shell completes for them."""

from pathlib import Path

import click
from click.shell_completion import CompletionItem

from spqfmt.address import is_address
from spqfmt.cli.paths import InputPath
from spqfmt.device_names import check_device_name
from spqfmt.errors import OptionError, SpqError

_ENDINGS = (".spq", ".spq.index.json")


class ModelPath(InputPath):
    """An .spq file, with `folders` any model; completed to .spq files where no folder is in question."""

    instead = "; give an .spq file, which `spqfmt pack` makes from a model's folder"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The .spq files that begin like this, else whatever the shell itself would offer."""
        head, _, start = incomplete.rpartition("/")
        folder = Path(head or ("/" if incomplete.startswith("/") else "."))
        default = [CompletionItem(incomplete, type="file")]
        try:
            found = [path for path in sorted(folder.iterdir()) if path.name.startswith(start)]
            if any(path.is_dir() for path in found):
                return default
        except OSError:
            return default
        typed = incomplete[: len(incomplete) - len(start)]
        items = [
            CompletionItem(typed + path.name, type="path") for path in found if path.name.endswith(_ENDINGS)
        ]
        return items or default


def _device(ctx: click.Context, param: click.Parameter, value: str) -> str:
    try:
        return check_device_name(value)
    except OptionError as error:
        raise click.BadParameter(str(error)) from None


ALIGNMENT = click.Choice(["64", "4096"])
ALIGNMENT_HELP = (
    "Where chunks begin: at multiples of so many bytes. With 4096 all can be read with O_DIRECT or GPU direct storage, "
    "and the file is of format 1.1."
)
SPQ = ModelPath(addresses=True)
SPQ_OR_PIPE = ModelPath(addresses=True, pipes=True)
LOCAL_SPQ = ModelPath()
MODEL = ModelPath(folders=True, addresses=True)
DEVICE = click.option(
    "--device", default="cpu", show_default=True, callback=_device, help="cpu, cuda or cuda:N."
)


def complete_tensors(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of the tensors of the file that stands on the command line before."""
    from spqfmt.container.model import open_model

    # While an option has no value yet, click leaves the arguments unparsed.
    given = [ctx.params.get("file"), ctx.params.get("first"), *ctx.args]
    path = next((path for path in given if path is not None and str(path).endswith(_ENDINGS)), None)
    if path is None:
        return []
    try:
        # A shell is not kept waiting for a server.
        if is_address(path):
            return []
        with open_model(path) as model:
            names = list(model.tensors)
    except (SpqError, OSError):
        return []
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


RANKS = click.option(
    "--ranks",
    type=click.IntRange(1, 1024),
    help="Store layers so that each of so many processes, started by torchrun, reads its part of them alone. "
    "1 is as without.",
)
