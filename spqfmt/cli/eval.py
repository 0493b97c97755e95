"""`spqfmt eval`: perplexity of a text, and the distance to a reference model."""

import json
from pathlib import Path
from typing import Any

import click

from spqfmt.cli.failures import about, warnings_in_one_line
from spqfmt.cli.parameters import DEVICE, MODEL
from spqfmt.cli.paths import InputPath
from spqfmt.cli.pictures import html_option, write_page
from spqfmt.cli.progress import Bar
from spqfmt.cli.tasks import eval_tasks
from spqfmt.cli.units import printable
from spqfmt.stand_ins import read_text


def _text(file: Path | None, tasks: str | None) -> str:
    """The text to score; empty where tasks are asked for. Raises UsageError where not one of both is."""
    if (file is None) == (tasks is None):
        raise click.UsageError("give either --text or --tasks")
    if file is None:
        return ""
    text = read_text(file)
    if not text.strip():
        raise click.BadParameter(f"{file}: no text in it", param_hint="--text")
    return text


_OF_TEXTS = ("reference", "window", "stride", "no_bos", "max_tokens", "html")
_OF_TASKS = ("task_folder", "limit", "few_shot")


def _refuse_others(context: click.Context, names: tuple[str, ...], option: str) -> None:
    """Raise UsageError for options that say nothing without another one."""
    for name in names:
        if context.params[name]:
            raise click.UsageError(f"--{name.replace('_', '-')} goes with {option}")


@click.command("eval")
@click.argument("file", type=MODEL)
@click.option(
    "--text",
    "text_file",
    type=InputPath(),
    help="UTF-8 text to score.",
)
@click.option(
    "--tasks", help="Tasks of lm_eval instead, with commas between (pip install 'spqfmt[lm-eval]')."
)
@click.option("--task-folder", type=InputPath(folders=True), help="Folder of more tasks, as yaml files.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first documents of each task.")
@click.option(
    "--few-shot", type=click.IntRange(min=0), help="Examples before each document. [default: the task's]"
)
@click.option("--reference", type=MODEL, help="Model to compare with, for KL(reference || FILE).")
@click.option(
    "--window", type=click.IntRange(min=2), help="Tokens in one input. [default: the model's, at most 2048]"
)
@click.option(
    "--stride", type=click.IntRange(min=1), help="Tokens from one window to the next. [default: the window]"
)
@click.option(
    "--no-bos",
    is_flag=True,
    help="The tokenizer's own tokens (BOS) once around the whole text, instead of before every window.",
)
@click.option("--max-tokens", type=click.IntRange(min=2), help="Use only the first tokens of the text.")
@click.option(
    "--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Windows computed together."
)
@click.option(
    "--dtype",
    type=click.Choice(("float32", "float16", "bfloat16")),
    default="float32",
    show_default=True,
    help="Both models compute in it.",
)
@DEVICE
@html_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout and nothing else.")
@click.option("--quiet", is_flag=True, help="No progress.")
def eval_(
    *,
    file: Path,
    text_file: Path | None,
    tasks: str | None,
    task_folder: Path | None,
    limit: int | None,
    few_shot: int | None,
    reference: Path | None,
    window: int | None,
    stride: int | None,
    no_bos: bool,
    max_tokens: int | None,
    batch: int,
    dtype: str,
    device: str,
    html: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Perplexity of FILE on a text, or its scores in tasks of lm_eval.

    FILE and the reference may be .spq files, Hugging Face folders or GGUF files.

    Where the tokenizer begins a text with BOS, so does every window: a model that was trained so needs it. It counts
    as one of the window's tokens and is not scored.

    \b
    spqfmt eval model.spq --text wiki.txt
    spqfmt eval model.spq --text wiki.txt --reference path/to/model --max-tokens 20000 --json
    spqfmt eval model.spq --text wiki.txt --reference path/to/model --html eval.html
    spqfmt eval model.spq --tasks arc_easy,hellaswag --limit 200 --batch 8
    """
    text = _text(text_file, tasks)
    _refuse_others(
        click.get_current_context(), _OF_TEXTS if tasks else _OF_TASKS, "--text" if tasks else "--tasks"
    )
    # torch takes seconds to import: only after the options are known to be right.
    from spqfmt import loaders

    def load(path: Path, what: str) -> tuple[Any, Any]:
        with about(path), warnings_in_one_line(quiet=quiet):
            bar = Bar(f"loading {what}", quiet=quiet)
            return loaders.load_model(path, device=device, dtype=dtype, packed="auto", progress=bar)

    if tasks is not None:
        eval_tasks(
            file,
            tasks,
            lambda: load(file, file.name),
            folder=task_folder,
            limit=limit,
            few_shot=few_shot,
            batch=batch,
            as_json=as_json,
            quiet=quiet,
        )
        return
    model, tokenizer = load(file, file.name)
    loaders.need_tokenizer(file, tokenizer)
    loaders.need_language_model(file, model)
    other = None if reference is None else load(reference, "the reference")[0]
    with about(file):
        ids = loaders.encode_text(tokenizer, text, special_tokens=no_bos)
        before = [] if no_bos else loaders.leading_tokens(tokenizer, text)
        bos = loaders.described(tokenizer, before) or None
        loaders.check_ids(model, tokenizer, ids[:max_tokens])
    if reference is not None:
        loaders.need_language_model(reference, other)
        with about(reference):
            loaders.check_ids(other, tokenizer, ids[:max_tokens])
    try:
        with about(file):
            result = loaders.evaluate(
                model,
                ids,
                before=before,
                reference=other,
                window=window,
                stride=stride,
                max_tokens=max_tokens,
                batch=batch,
                progress=Bar("scoring", quiet=quiet, unit="tokens"),
            )
    except ValueError as error:
        raise click.UsageError(f"{file}: {error}") from None
    if html is not None:
        from spqfmt.pages.evaluation import eval_page

        facts = {
            "text": text_file,
            "reference": reference,
            "window": window,
            "dtype": dtype,
            "device": device,
            "every window begins with": bos,
        }
        shown = [(key, str(value)) for key, value in facts.items() if value is not None]
        write_page(html, eval_page(result.to_json(), file.name, shown))
    if as_json:
        click.echo(json.dumps({**result.to_json(), "bos": bos}))
    if as_json or html is not None:
        return
    begin = f", every window begins with {printable(bos)}" if bos else ""
    click.echo(
        f"perplexity {result.perplexity:.4f} over {result.tokens} tokens "
        f"(stride {result.stride}{begin}, {loaders.computes_in(model)})"
    )
    if result.kl is not None:
        click.echo(f"KL to the reference {result.kl:.6f} nats a token")
