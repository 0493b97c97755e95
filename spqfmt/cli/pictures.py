"""`--html` and `--png`: what a command measured, for a browser or as a picture."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from spqfmt.cli.failures import about
from spqfmt.container.temporary import open_temporary
from spqfmt.pages.text import size

if TYPE_CHECKING:
    from spqfmt.pipeline.report import FileReport


def write_page(path: Path, page: str) -> None:
    """Write a page, whole or not at all, and say so on stderr."""
    temporary, file = open_temporary(path)
    try:
        with about(path), file:
            file.write(page.encode())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    wrote(path)


def wrote(path: Path) -> None:
    """Say on stderr what was written."""
    click.echo(f"{path}: {size(path.stat().st_size)}", err=True)


def draw(whole: "FileReport", chosen: "FileReport", file: Path, html: Path | None, png: Path | None) -> None:
    """The page and the picture of `file`: of all its tensors, measured where those of `chosen` are."""
    measured = {tensor.name: tensor.measured for tensor in chosen.tensors}
    report = replace(whole, tensors=tuple(replace(t, measured=measured.get(t.name)) for t in whole.tensors))
    if html is not None:
        from spqfmt.pages.inspect import inspect_page

        write_page(html, inspect_page(report, file))
    if png is not None:
        from spqfmt.pages.figures import write_png

        write_png(report, file, png)
        wrote(png)
