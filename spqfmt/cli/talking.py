"""What the commands that generate text share: options of loading and of sampling, the load, and text as it comes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from spqfmt.cli.failures import about, warnings_in_one_line
from spqfmt.cli.parameters import DEVICE
from spqfmt.cli.progress import Bar
from spqfmt.cli.units import for_terminal

if TYPE_CHECKING:
    import torch

    from spqfmt.loaders import Sampling

_Command: TypeAlias = Callable[..., Any]

_DTYPES = ("float32", "float16", "bfloat16")
_LOADING = (
    click.option(
        "--dtype",
        type=click.Choice(_DTYPES),
        help="Compute in this dtype. [default: the file's own, or one that this processor is much faster with]",
    ),
    DEVICE,
    click.option(
        "--memory",
        help="Ceiling for all that is held of an .spq file's weights, such as 300MiB, or auto: what is free less what "
        "--context tokens take. See `spqfmt plan`. [default: on a GPU auto, else none]",
    ),
    click.option(
        "--context",
        type=click.IntRange(min=1),
        help="Tokens that --memory auto keeps room for. [default: 2048]",
    ),
    click.option(
        "--host-memory",
        help="On a CUDA device, the ceiling for weights that wait in host memory besides --memory.",
    ),
    click.option(
        "--activations",
        type=click.Choice(("float", "int8")),
        help="Inputs of packed layers: as they are, or rounded. "
        "[default: what the file says, few tokens finely rounded]",
    ),
)
_SAMPLING = (
    click.option(
        "--temperature",
        type=click.FloatRange(min=0),
        default=0.0,
        show_default=True,
        help="0 always takes the likeliest token.",
    ),
    click.option(
        "--top-p",
        type=click.FloatRange(min=0, min_open=True, max=1),
        help="Of the likeliest tokens, so many as have this share of chances. [default: what the model asks for]",
    ),
    click.option(
        "--top-k",
        type=click.IntRange(min=0),
        help="Of so many of the likeliest tokens; 0 for all. [default: what the model asks for]",
    ),
    click.option(
        "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="For a temperature above 0."
    ),
    click.option("--stop", multiple=True, help="End an answer before this text; repeatable."),
)


@dataclass(frozen=True)
class Loading:
    """How a model is to be loaded, by `loading_options`."""

    dtype: str | None
    device: str
    memory: str | None
    context: int | None
    host_memory: str | None
    activations: str | None


@dataclass(frozen=True)
class Choosing:
    """How tokens are to be chosen, by `sampling_options`."""

    temperature: float
    top_p: float | None
    top_k: int | None
    seed: int
    stop: tuple[str, ...]

    def sampling(self, max_new_tokens: int) -> Sampling:
        """The same with a number of tokens. Raises OptionError."""
        from spqfmt.loaders.sampling import Sampling

        stops = tuple(_unescaped(text) for text in self.stop)
        return Sampling(max_new_tokens, self.temperature, self.top_p, self.top_k, seed=self.seed, stop=stops)


def _unescaped(text: str) -> str:
    """Line ends and tabs as they are written where a shell makes others hard to type."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


def loading_options(command: _Command) -> _Command:
    """How a model is loaded: options that the command gets as `loading`."""
    return _gathered(command, _LOADING, "loading", Loading)


def sampling_options(command: _Command) -> _Command:
    """How tokens are chosen, without how many: options that the command gets as `choosing`."""
    return _gathered(command, _SAMPLING, "choosing", Choosing)


def _gathered(
    command: _Command, options: tuple[Callable[[Any], Any], ...], name: str, kind: type
) -> _Command:
    """The command with these options, whose values it gets as one record of a kind."""

    @wraps(command)
    def run(**given: Any) -> Any:
        record = kind(**{field.name: given.pop(field.name) for field in fields(kind)})
        return command(**given, **{name: record})

    found: _Command = run
    for option in reversed(options):
        found = option(found)
    return found


@dataclass(frozen=True)
class Talker:
    """A model that talks."""

    file: Path
    model: Any
    tokenizer: Any
    seconds: float


def load(file: Path, loading: Loading, *, quiet: bool, decoder_only: bool = False) -> Talker:
    """Load a language model with its tokenizer, codes packed. Raises as `spqfmt.load_model` does."""
    # torch takes seconds to import: only after the options are known to be right.
    from spqfmt import loaders

    start = time.perf_counter()
    with about(file), warnings_in_one_line(quiet=quiet):
        model, tokenizer = loaders.load_model(
            file,
            device=loading.device,
            dtype=loading.dtype or "fast",
            memory=loading.memory,
            host_memory=loading.host_memory,
            n_tokens=loading.context,
            activations=loading.activations,
            progress=Bar("loading", quiet=quiet),
        )
    seconds = time.perf_counter() - start
    loaders.need_tokenizer(file, tokenizer)
    loaders.need_language_model(file, model, decoder_only=decoder_only)
    return Talker(file, model, tokenizer, seconds)


def writer() -> Callable[[str], None]:
    """Return what shows text as it comes, on a terminal with its control characters made visible."""
    is_terminal = sys.stdout.isatty()

    def write(text: str) -> None:
        click.echo(for_terminal(text) if is_terminal else text, nl=False)
        sys.stdout.flush()

    return write


def tell_if_long(loaded: Talker, ids: torch.Tensor) -> None:
    """Say before it takes long that a prompt, [1, n], has more tokens than the model was made for."""
    from spqfmt import loaders

    limit = loaders.window_limit(loaded.model)
    if limit is not None and ids.shape[1] > limit and not loaded.model.config.is_encoder_decoder:
        click.echo(
            f"{loaded.file}: the prompt has {ids.shape[1]} tokens, the model was made for {limit}; Ctrl-C ends it",
            err=True,
        )
