"""`spqfmt eval --tasks`: lm_eval's tasks, in few lines."""

import contextlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from spqfmt.cli.failures import about


def eval_tasks(
    file: Path,
    names: str,
    load: Callable[[], tuple[Any, Any]],
    *,
    folder: Path | None,
    limit: int | None,
    few_shot: int | None,
    batch: int,
    as_json: bool,
    quiet: bool,
) -> None:
    """Print a row for each metric. The model is loaded only once the tasks are known."""
    from spqfmt import loaders
    from spqfmt.loaders.harness import Tasks

    tasks = Tasks([name.strip() for name in names.split(",") if name.strip()], folder)
    model, tokenizer = load()
    loaders.need_tokenizer(file, tokenizer)
    loaders.need_language_model(file, model)
    # lm_eval draws its bars wherever it is.
    shows = not quiet and sys.stderr.isatty()
    with about(file), contextlib.nullcontext() if shows else contextlib.redirect_stderr(io.StringIO()):
        scores = tasks.run(model, tokenizer, limit=limit, few_shot=few_shot, batch=batch)
    if as_json:
        click.echo(json.dumps({"tasks": [score.to_json() for score in scores]}))
        return
    for score in scores:
        error = "" if score.error is None else f" +- {score.error:.4f}"
        click.echo(f"{score.task} {score.metric} {score.value:.4f}{error} ({score.n} documents)")
