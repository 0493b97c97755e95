"""`spqfmt`: finds the commands, and turns every error into one line and the right exit code."""

import errno
import importlib
import sys
from collections.abc import Sequence

import click
from click.shell_completion import CompletionItem

from spqfmt.errors import OptionError, SpqError
from spqfmt.version import __version__

OK, BAD_FILE, WRONG_USE, INTERRUPTED = 0, 1, 2, 130

# Command -> (module, its click command, its help in one line). Modules are imported when their command runs, so that
# `spqfmt --help` and the commands that need no torch start at once.
COMMANDS = {
    "pack": ("spqfmt.cli.pack", "pack", "Pack a model into a .spq file."),
    "repack": ("spqfmt.cli.repack", "repack", "Compress other chunks of a file, or by another codec."),
    "inspect": ("spqfmt.cli.inspect", "inspect", "Show what every tensor costs."),
    "diff": ("spqfmt.cli.diff", "diff", "Compare two files of one model."),
    "verify": ("spqfmt.cli.verify", "verify", "Check every byte of a file."),
    "unpack": ("spqfmt.cli.unpack", "unpack", "Write a Hugging Face folder."),
    "plan": ("spqfmt.cli.plan", "plan", "Show where weights would live under a memory ceiling."),
    "run": ("spqfmt.cli.run", "run", "Generate text."),
    "eval": ("spqfmt.cli.eval", "eval_", "Perplexity, and KL to a reference model."),
    "bench": ("spqfmt.cli.bench", "bench", "Measure codecs and loading on this machine."),
    "completion": ("spqfmt.cli.completion", "completion", "Print a script that completes the command line."),
}


class _Commands(click.Group):
    """Imports a command's module only when the command is wanted."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        commands = [
            CompletionItem(name, help=text)
            for name, (_, _, text) in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return [*commands, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="spqfmt")
def cli() -> None:
    """An open file format for compressed language models: pack, load, inspect."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 the file or model is bad, 2 wrong use, 130 interrupted."""
    sys.exit(_run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    try:
        # What a command gives to ctx.exit, or None.
        code = cli.main(args=arguments, prog_name="spqfmt", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt) as error:
        return _say(str(error) or "interrupted; nothing was left behind", INTERRUPTED)
    except (FileExistsError, FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        return _say(_os_message(error), WRONG_USE)
    except OSError as error:
        return _say(_os_message(error), BAD_FILE)
    except SpqError as error:
        return _say(str(error), WRONG_USE if isinstance(error, OptionError) else BAD_FILE)
    return code if isinstance(code, int) else OK


def _os_message(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return f"the disk is full{f': {error.filename}' if error.filename else ''}; nothing was written"
    if error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


def _say(message: str, code: int) -> int:
    click.echo(f"spqfmt: {' '.join(message.split())}", err=True)
    return code
