"""Names on a hub, on the command line."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from spqfmt.cli.paths import InputPath
from spqfmt.errors import OptionError
from spqfmt.hub.names import HubName, hub_name, not_a_path


class HubParameter(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic since click 8.2
    """A model on a hub: OWNER/NAME, with @REVISION and /FILE behind it. `plain`: the repository alone."""

    name = "name"

    def __init__(self, *, plain: bool = False) -> None:
        self._plain = plain

    def convert(
        self, value: str | HubName, param: click.Parameter | None, ctx: click.Context | None
    ) -> HubName:
        """Raise OptionError for anything else."""
        found = value if isinstance(value, HubName) else hub_name(value)
        if found is None or (self._plain and found.file):
            more = "" if self._plain else "[@REVISION][/FILE]"
            raise OptionError(f"{value}: no model on a hub; give OWNER/NAME{more}")
        return found


class SourcePath(InputPath):
    """The path of a model, or its name on a hub where no path of that name is here."""

    def convert(  # type: ignore[override]
        self,
        value: str | os.PathLike[str] | HubName,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Path | HubName:
        """Raise OptionError for what is neither."""
        if isinstance(value, HubName):
            return value
        return not_a_path(os.fspath(value)) or super().convert(value, param, ctx)


def shows_bars(*, quiet: bool) -> bool:
    """Whether huggingface_hub may draw its bars on stderr."""
    return not quiet and sys.stderr.isatty()
