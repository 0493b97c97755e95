"""`spqfmt completion`: what a shell needs to complete the command line."""

import click

from spqfmt.cli.shells import ASKED, SHELLS


@click.command("completion")
@click.argument("shell", type=click.Choice(list(SHELLS)))
@click.pass_context
def completion(ctx: click.Context, /, *, shell: str) -> None:
    """Print the script that makes SHELL complete commands, options, .spq files and the names of their tensors.

    \b
    spqfmt completion bash >> ~/.bashrc
    spqfmt completion zsh >> ~/.zshrc
    spqfmt completion fish > ~/.config/fish/completions/spqfmt.fish
    """
    complete = SHELLS[shell](ctx.find_root().command, {}, "spqfmt", ASKED)
    click.echo(complete.source(), nl=False)
