"""`spqfmt chat`: a conversation with a model."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from spqfmt.cli.failures import about
from spqfmt.cli.parameters import MODEL
from spqfmt.cli.talking import (
    Choosing,
    Loading,
    Talker,
    load,
    loading_options,
    sampling_options,
    tell_if_long,
    writer,
)
from spqfmt.errors import OptionError, SpqError

if TYPE_CHECKING:
    from spqfmt.loaders import Generation, Sampling

_N_SEEDS = 1 << 64
_ONE_GESTURE_SECONDS = 1.0
"""How long one Ctrl-C after another means the same."""
_HELP = """\
/help          these lines
/system TEXT   what the model is told before the conversation, which begins anew; without TEXT nothing
/clear         begin anew
/undo          take back the last question and its answer
/again         answer the last question again, with another seed
/exit          leave; so does Ctrl-D
A line that ends with \\ goes on in the next one. Ctrl-C ends an answer; what came of it stays in the conversation."""


@click.command("chat")
@click.argument("file", type=MODEL)
@click.option("--system", help="What the model is told before the conversation.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=1024, show_default=True)
@sampling_options
@loading_options
@click.option("--quiet", is_flag=True, help="No progress and no greeting.")
def chat(
    *,
    file: Path,
    system: str | None,
    max_new_tokens: int,
    choosing: Choosing,
    loading: Loading,
    quiet: bool,
) -> None:
    """Talk with FILE, a model with a chat template: an .spq file, a Hugging Face folder or a GGUF file.

    Answers come as they are made. Ctrl-C ends one and keeps what came of it; /help lists what else can be said. The
    arrow keys bring back what was typed before. Lines may come through a pipe too.

    \b
    spqfmt chat model.spq
    spqfmt chat model.spq --memory 2GiB --system "Answer in one sentence." --temperature 0.7 --seed 3
    """
    how = choosing.sampling(max_new_tokens)
    loaded = load(file, loading, quiet=quiet)
    if getattr(loaded.tokenizer, "chat_template", None) is None:
        raise SpqError(f"{file}: the model has no chat template; `spqfmt run --prompt` continues plain text")
    if not quiet:
        click.echo("/help lists commands, Ctrl-C ends an answer, Ctrl-D leaves", err=True)
    _talk(_Conversation(loaded, how, system))


def _talk(conversation: _Conversation) -> None:
    """Answer line after line, until there are no more."""
    goes_on = True
    while goes_on:
        try:
            goes_on = _turn(conversation)
        except _Leaving:
            raise
        except KeyboardInterrupt:
            # At the prompt there is nothing to end; whoever wants to leave is told how.
            click.echo("\nCtrl-D leaves", err=True)


def _turn(conversation: _Conversation) -> bool:
    """Take a line and do what it says; false where it was the last."""
    line = _line()
    if line is None:
        return False
    word, _, rest = line.strip().partition(" ")
    if word in {"/exit", "/quit", "/bye"}:
        return False
    if word.startswith("/"):
        conversation.command(word, rest.strip())
    elif line.strip():
        conversation.ask(line)
    return True


def _line() -> str | None:
    """What is typed, several lines where they end with a backslash; None at the end."""
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        # Importing it gives `input` its editing and its history.
        import readline  # noqa: F401
    lines: list[str] = []
    while True:
        try:
            line = input(("... " if lines else "> ") if is_terminal else "")
        except UnicodeDecodeError as error:
            raise OptionError(f"what is typed is not UTF-8 ({error.reason})") from None
        except EOFError:
            if is_terminal:
                click.echo()
            return "\n".join(lines) or None
        if not line.endswith("\\"):
            return "\n".join([*lines, line])
        lines.append(line[:-1])


class _Conversation:
    """Keeps what was said. An answer that fails, or of which nothing came, takes its question with it."""

    def __init__(self, loaded: Talker, how: Sampling, system: str | None) -> None:
        self._loaded, self._how = loaded, how
        self._system = system
        self._messages: list[dict[str, str]] = []
        self._n_again = 0
        self._write = writer()

    def ask(self, text: str) -> None:
        """Say something, and show the answer."""
        self._n_again = 0
        self._answer([*self._messages, {"role": "user", "content": text}])

    def command(self, word: str, rest: str) -> None:
        """Do what a line that begins with / says."""
        if word == "/help":
            click.echo(_HELP, err=True)
        elif word in {"/clear", "/system"}:
            if word == "/system":
                self._system = rest or None
            self._messages = []
            click.echo("a new conversation", err=True)
        elif word in {"/undo", "/again"} and not self._messages:
            click.echo("nothing was asked yet", err=True)
        elif word == "/undo":
            del self._messages[-2:]
            click.echo(f"{len(self._messages) // 2} questions are left", err=True)
        elif word == "/again":
            self._n_again += 1
            self._answer(self._messages[:-1])
        else:
            click.echo(f"{word}: no such command; /help lists them", err=True)

    def _answer(self, messages: list[dict[str, str]]) -> None:
        from dataclasses import replace

        from spqfmt import loaders

        before = [{"role": "system", "content": self._system}] if self._system else []
        how = replace(self._how, seed=(self._how.seed + self._n_again) % _N_SEEDS)
        # Until all is noted: one that comes right after the answer is meant for the answer too.
        with _interrupts() as interrupted:
            try:
                with about(self._loaded.file):
                    ids = loaders.encode_prompt(self._loaded.tokenizer, [*before, *messages])
                    tell_if_long(self._loaded, ids)
                    result = loaders.generate(
                        self._loaded.model,
                        self._loaded.tokenizer,
                        ids,
                        how,
                        write=self._write,
                        cancelled=lambda: bool(interrupted),
                    )
            except SpqError as error:
                click.echo(f"spqfmt: {' '.join(str(error).split())}", err=True)
                return
            if result.text or not interrupted:
                self._messages = [*messages, {"role": "assistant", "content": result.text}]
            self._tell(result, loaders.window_limit(self._loaded.model))

    @staticmethod
    def _tell(result: Generation, limit: int | None) -> None:
        click.echo()
        if limit is not None and result.n_prompt_tokens + result.n_new_tokens > limit:
            click.echo(f"the model was made for {limit} tokens, which are full; /clear begins anew", err=True)
        elif result.finish == "length":
            click.echo(f"(ended after {result.n_new_tokens} tokens)", err=True)


class _Leaving(KeyboardInterrupt):
    """Somebody does not want to wait for the end of an answer."""


@contextmanager
def _interrupts() -> Iterator[list[float]]:
    """Collect when Ctrl-C comes while this lasts. One that comes a while after the first leaves the program."""
    found: list[float] = []

    def note(number: int, _: object) -> None:
        found.append(time.monotonic())
        if found[-1] - found[0] > _ONE_GESTURE_SECONDS:
            raise _Leaving

    before = signal.signal(signal.SIGINT, note)
    try:
        yield found
    finally:
        signal.signal(signal.SIGINT, before)
