"""`spqfmt run`: generate text with a model."""

import resource
import sys
import time
from pathlib import Path

import click

from spqfmt.cli.failures import about, warnings_in_one_line
from spqfmt.cli.parameters import DEVICE, MODEL
from spqfmt.cli.progress import Bar
from spqfmt.cli.units import for_terminal

_DTYPES = ("float32", "float16", "bfloat16")


@click.command("run")
@click.argument("file", type=MODEL)
@click.option("--prompt", required=True, help="What to continue or, for a chat model, to answer.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=128, show_default=True)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="0 always takes the likeliest token.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="For a temperature above 0."
)
@click.option("--raw", is_flag=True, help="Give the prompt as it is, without the model's chat template.")
@click.option(
    "--dtype",
    type=click.Choice(_DTYPES),
    help="Compute in this dtype. [default: the file's own, or one that this processor is much faster with]",
)
@DEVICE
@click.option(
    "--memory",
    help="Ceiling for all that is held of an .spq file's weights, such as 300MiB. See `spqfmt plan`.",
)
@click.option(
    "--host-memory",
    help="On a CUDA device, the ceiling for weights that wait in host memory besides --memory.",
)
@click.option(
    "--activations",
    type=click.Choice(("float", "int8")),
    help="Inputs of packed layers: as they are, or rounded. [default: what the file says, few tokens finely rounded]",
)
@click.option("--quiet", is_flag=True, help="No progress and no facts: the text alone.")
def run(
    *,
    file: Path,
    prompt: str,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    raw: bool,
    dtype: str | None,
    device: str,
    memory: str | None,
    host_memory: str | None,
    activations: str | None,
    quiet: bool,
) -> None:
    """Generate text with FILE, an .spq file here or at an address (a Hugging Face folder or a GGUF file works too).

    The text goes to stdout as it comes, on a terminal with its control characters made visible; load time, rate, peak
    memory, and what the model computed in, go to stderr. On the CPU the codes of a quantizer stay packed.

    \b
    spqfmt run model.spq --prompt "Why is the sky blue?"
    spqfmt run model.spq --prompt "Why is the sky blue?" --memory 60MiB
    spqfmt run hf://owner/model/model.spq --prompt "Why is the sky blue?"
    spqfmt run model.spq --prompt "Once upon a time" --raw --temperature 0.8 --seed 1
    """
    # torch takes seconds to import: only after the options are known to be right.
    from spqfmt import loaders

    start = time.perf_counter()
    with about(file), warnings_in_one_line(quiet=quiet):
        model, tokenizer = loaders.load_model(
            file,
            device=device,
            dtype=dtype or "fast",
            memory=memory,
            host_memory=host_memory,
            packed="auto" if memory is None else None,
            activations=activations,
            progress=Bar("loading", quiet=quiet),
        )
    load_seconds = time.perf_counter() - start
    loaders.need_tokenizer(file, tokenizer)
    loaders.need_language_model(file, model, decoder_only=False)

    is_terminal = sys.stdout.isatty()

    def write(text: str) -> None:
        click.echo(for_terminal(text) if is_terminal else text, nl=False)
        sys.stdout.flush()

    with about(file):
        result = loaders.generate(
            model,
            tokenizer,
            prompt,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            chat=False if raw else None,
            write=write,
        )
    click.echo()
    if quiet:
        return
    limit = loaders.window_limit(model)
    # An encoder has its own places for the prompt.
    n_before = 0 if model.config.is_encoder_decoder else result.n_prompt_tokens
    n_tokens = n_before + result.n_new_tokens
    if n_tokens == limit and result.n_new_tokens < max_new_tokens:
        click.echo(f"{file}: the text ends at the {limit} tokens that the model takes", err=True)
    if limit is not None and n_tokens > limit:
        click.echo(f"{file}: the model was made for {limit} tokens; text beyond them may be poor", err=True)
    click.echo(
        f"load {load_seconds:.2f} s, prompt {result.n_prompt_tokens} tokens, "
        f"first token {result.first_token_seconds:.2f} s, "
        f"{result.n_new_tokens} new tokens at {result.tokens_per_second:.1f} tokens/s, "
        f"peak memory {peak_memory_bytes() / 2**20:.0f} MiB, {loaders.computes_in(model)}",
        err=True,
    )


def peak_memory_bytes() -> int:
    """Largest resident set of this process so far."""
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
