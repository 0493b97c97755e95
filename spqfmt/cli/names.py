"""Lists of names that come from a file or a folder, in one line."""

from collections.abc import Mapping, Sequence

import click

from spqfmt.cli.units import printable

_SHOWN = 20


def listed(names: Sequence[str], shown: int = _SHOWN) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def tell_left_out(left_out: Mapping[str, str], what: str = "left out, ") -> None:
    """One line on stderr for each reason, behind `what`, with the names of the files."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        by_reason.setdefault(reason, []).append(name)
    for reason, names in by_reason.items():
        click.echo(printable(f"{what}{reason}: {listed(names)}"), err=True)
