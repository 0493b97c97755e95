"""`spqfmt completion`: what a shell needs to complete the command line."""

import click
from click.shell_completion import get_completion_class

from spqfmt.errors import OptionError

_SHELLS = ("bash", "zsh", "fish")


@click.command("completion")
@click.argument("shell", type=click.Choice(_SHELLS))
@click.pass_context
def completion(ctx: click.Context, /, *, shell: str) -> None:
    """Print the script that makes SHELL complete commands, options, .spq files and the names of their tensors.

    \b
    spqfmt completion bash >> ~/.bashrc
    spqfmt completion zsh >> ~/.zshrc
    spqfmt completion fish > ~/.config/fish/completions/spqfmt.fish
    """
    complete = get_completion_class(shell)
    if complete is None:
        raise OptionError(f"this click does not know the shell {shell}")
    click.echo(complete(ctx.find_root().command, {}, "spqfmt", "_SPQFMT_COMPLETE").source())
