"""`spqfmt`: finds the commands, and turns every error into one line and the right exit code."""

import gc
import importlib
import io
import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress

import click
from click.shell_completion import CompletionItem

from spqfmt.cli.failures import BAD_FILE, DEBUG, OK, WRONG_USE, explain
from spqfmt.cli.together import leave_the_word
from spqfmt.cli.units import printable
from spqfmt.processes import is_waiting
from spqfmt.unfinished import remove_unfinished

# Command -> (module, its click command, its help in one line). Modules are imported when their command runs, so that
# `spqfmt --help` and the commands that need no torch start at once.
COMMANDS = {
    "pack": ("spqfmt.cli.pack", "pack", "Pack a model into a .spq file."),
    "repack": ("spqfmt.cli.repack", "repack", "Compress other chunks of a file, or by another codec."),
    "inspect": ("spqfmt.cli.inspect", "inspect", "Show what every tensor costs."),
    "diff": ("spqfmt.cli.diff", "diff", "Compare two files of one model."),
    "verify": ("spqfmt.cli.verify", "verify", "Check every byte of a file."),
    "sign": ("spqfmt.cli.sign", "sign", "Sign a file with a key of ed25519."),
    "unpack": ("spqfmt.cli.unpack", "unpack", "Give the source's files back, or plain weights."),
    "plan": ("spqfmt.cli.plan", "plan", "Show where weights would live under a memory ceiling."),
    "run": ("spqfmt.cli.run", "run", "Generate text."),
    "chat": ("spqfmt.cli.chat", "chat", "Talk with a model."),
    "serve": ("spqfmt.cli.serve", "serve", "Serve a model to OpenAI's clients."),
    "eval": ("spqfmt.cli.eval", "eval_", "Perplexity, and KL to a reference model."),
    "push": ("spqfmt.cli.push", "push", "Send a packed model to a hub."),
    "pull": ("spqfmt.cli.pull", "pull", "Fetch a packed model from a hub."),
    "exec": ("spqfmt.cli.exec", "exec_", "Run another program that loads packed models."),
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
        _bound_others()
        if "_SPQFMT_COMPLETE" not in os.environ:
            _check_environment()
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


def _check_environment() -> None:
    """Raise OptionError for a number of threads that is none, also where a command would not ask for it."""
    from spqfmt.codecs.threads import check_variable

    check_variable()


def _bound_others() -> None:
    """Have numpy and tokenizers start no threads where the system leaves room for few.

    Each starts one for each processor, torch too, and they end the process where they cannot.
    """
    from spqfmt.kernels import _native

    plenty = 3 * _native.usable_threads() + _SOME_THREADS
    if _native.startable_threads(plenty) < plenty:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


_SOME_THREADS = 8
"""What is started besides, at most: to load models, and to read ahead."""


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="spqfmt", prog_name="spqfmt")
def cli() -> None:
    """An open file format for compressed language models: pack, load, inspect."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 the file or model is bad, 2 wrong use, 130 interrupted."""
    code = _run(arguments)
    if is_waiting():
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(code)
    if arguments is None:
        # Python looks for garbage before it ends: in all that torch has made, for a third of a second.
        gc.freeze()
    sys.exit(code)


def _run(arguments: Sequence[str] | None) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot show a name is no reason to fail.
            stream.reconfigure(errors="backslashreplace")
    if "_SPQFMT_COMPLETE" in os.environ:  # a shell asks for completions
        importlib.import_module("spqfmt.cli.shells")
    if (
        signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        and threading.current_thread() is threading.main_thread()
    ):
        # Who is asked to end clears up as after an interrupt.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        # What a command gives to ctx.exit, or None.
        code = cli.main(args=arguments, prog_name="spqfmt", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return WRONG_USE
    except (Exception, KeyboardInterrupt) as error:  # never a traceback, unless it is asked for
        remove_unfinished()
        explained = explain(error)
        if explained is None:
            if os.environ.get(DEBUG):
                raise
            told = printable(" ".join(f"{type(error).__name__}: {error}".split()))
            explained = f"unexpected {told}; this is an error in spqfmt, {DEBUG}=1 shows where", BAD_FILE
        message, code = explained
        given = sys.argv[1:] if arguments is None else arguments
        if given[:1] == ["pack"]:
            leave_the_word()
        click.echo(f"spqfmt: {message}", err=True)
    return code if isinstance(code, int) else OK
