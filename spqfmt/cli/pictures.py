"""`--html` and `--png`: what a command measured, for a browser or as a picture."""

import io
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from spqfmt.cli.failures import about
from spqfmt.cli.paths import OutputPath
from spqfmt.container.temporary import discard, open_temporary
from spqfmt.pages.text import size

if TYPE_CHECKING:
    from spqfmt.reading.report import FileReport


def _place(context: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
    """Refuse what would cost a model."""
    if path is not None and path.name.endswith((".spq", ".spq.index.json")):
        raise click.BadParameter(f"{path} is named like a model, which it would replace", context, parameter)
    return path


_OUT = OutputPath()
html_option = click.option("--html", type=_OUT, callback=_place, help="Write one page for a browser.")
png_option = click.option(
    "--png", type=_OUT, callback=_place, help="Write the charts as a picture (needs matplotlib)."
)


def write_page(path: Path, page: str) -> None:
    """Write a page, whole or not at all, and say so on stderr."""
    # A name that is not UTF-8 is shown as it would be on a terminal.
    _write(path, page.encode(errors="backslashreplace"))


def _write(path: Path, data: bytes) -> None:
    temporary, file = open_temporary(path)
    try:
        with about(path), file:
            file.write(data)
        temporary.replace(path)
    finally:
        discard(temporary)
    _say(path)


def _say(path: Path) -> None:
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

        drawn = io.BytesIO()
        write_png(report, file, drawn)
        _write(png, drawn.getvalue())
