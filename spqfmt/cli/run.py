"""`spqfmt run`: generate text with a model."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spqfmt import systems
from spqfmt.cli.failures import about, warnings_in_one_line
from spqfmt.cli.parameters import MODEL
from spqfmt.cli.paths import PIPE, InputPath
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
from spqfmt.errors import OptionError
from spqfmt.stand_ins import read_text

if TYPE_CHECKING:
    from spqfmt.loaders import Generation


@click.command("run")
@click.argument("file", type=MODEL)
@click.option("--prompt", help="What to continue or, for a chat model, to answer; - reads it from stdin.")
@click.option(
    "--prompts",
    type=InputPath(pipes=True),
    help="A text file of prompts, one in a line, instead of --prompt; - reads them from stdin.",
)
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=128, show_default=True)
@sampling_options
@click.option("--raw", is_flag=True, help="Give the prompt as it is, without the model's chat template.")
@loading_options
@click.option(
    "--graphs",
    is_flag=True,
    help="On a GPU, record what a token gives it once, as a CUDA graph. No GPU has run this yet.",
)
@click.option("--quiet", is_flag=True, help="No progress and no facts: the text alone.")
def run(
    *,
    file: Path,
    prompt: str | None,
    prompts: Path | None,
    max_new_tokens: int,
    choosing: Choosing,
    raw: bool,
    loading: Loading,
    graphs: bool,
    quiet: bool,
) -> None:
    """Generate text with FILE, an .spq file here or at an address (a Hugging Face folder or a GGUF file works too).

    The text goes to stdout as it comes, on a terminal with its control characters made visible; load time, rate, peak
    memory, and what the model computed in, go to stderr. On the CPU the codes of a quantizer stay packed. Answers to
    several prompts come one after the other, with an empty line between them.

    \b
    spqfmt run model.spq --prompt "Why is the sky blue?"
    spqfmt run model.spq --prompt "Why is the sky blue?" --memory 60MiB
    spqfmt run hf://owner/model/model.spq --prompt "Why is the sky blue?"
    spqfmt run model.spq --prompt "Once upon a time" --raw --temperature 0.8 --top-p 0.9 --seed 1
    spqfmt run model.spq --prompts questions.txt --stop "\\n\\n" --quiet
    """
    texts = _prompts(prompt, prompts)
    how = choosing.sampling(max_new_tokens)
    loaded = load(file, loading, quiet=quiet)

    from spqfmt import loaders

    write = writer()
    for number, text in enumerate(texts):
        if number:
            click.echo()
        with about(file), warnings_in_one_line(quiet=quiet):
            ids = loaders.encode_prompt(
                loaded.tokenizer,
                text,
                chat=False if raw else None,
                ended=loaded.model.config.is_encoder_decoder,
            )
            if not quiet:
                tell_if_long(loaded, ids)
            result = loaders.generate(loaded.model, loaded.tokenizer, ids, how, write=write, graphs=graphs)
        click.echo()
        if not quiet:
            _tell(loaded, result, max_new_tokens)


def _prompts(prompt: str | None, prompts: Path | None) -> list[str]:
    """Texts that are to be answered or continued. Raises OptionError."""
    if (prompt is None) == (prompts is None):
        raise click.UsageError("give --prompt TEXT, --prompt - or --prompts FILE")
    if prompts is not None:
        text = _stdin() if prompts == PIPE else read_text(prompts)
        lines = [line for line in text.splitlines() if line.strip()]
        if not lines:
            raise OptionError(f"{'stdin' if prompts == PIPE else prompts}: no prompts in it")
        return lines
    assert prompt is not None
    return [_stdin() if prompt == "-" else prompt]


def _stdin() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise OptionError(f"the prompt on stdin is not UTF-8 ({error.reason})") from None


def _tell(loaded: Talker, result: "Generation", max_new_tokens: int) -> None:
    from spqfmt import loaders

    file, model = loaded.file, loaded.model
    limit = loaders.window_limit(model)
    # An encoder has its own places for the prompt.
    n_before = 0 if model.config.is_encoder_decoder else result.n_prompt_tokens
    n_tokens = n_before + result.n_new_tokens
    if n_tokens == limit and result.n_new_tokens < max_new_tokens:
        click.echo(f"{file}: the text ends at the {limit} tokens that the model takes", err=True)
    if limit is not None and n_tokens > limit:
        click.echo(f"{file}: the model was made for {limit} tokens; text beyond them may be poor", err=True)
    click.echo(
        f"load {loaded.seconds:.2f} s, prompt {result.n_prompt_tokens} tokens, "
        f"first token {result.first_token_seconds:.2f} s, "
        f"{result.n_new_tokens} new tokens at {result.tokens_per_second:.1f} tokens/s, "
        f"peak memory {_peak_memory()}{_of_device(model)}, {loaders.computes_in(model)}",
        err=True,
    )


def _of_device(model: Any) -> str:
    """The words for what a CUDA device held at most, beside the host's peak; none on the CPU."""
    from spqfmt.loaders.auto_memory import peak_of_device

    peak = peak_of_device(model)
    return "" if peak is None else f" on the host, {peak / 2**20:.0f} MiB on {model.device}"


def _peak_memory() -> str:
    peak = systems.peak_memory_bytes()
    return "unknown" if peak is None else f"{peak / 2**20:.0f} MiB"
