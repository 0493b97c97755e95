"""Files that a command did not take along, told by the reason."""

from collections.abc import Mapping

import click

from spqfmt.cli.units import printable

_SHOWN = 12


def tell_left_out(left_out: Mapping[str, str]) -> None:
    """One line on stderr for each reason, with the names of the files."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        by_reason.setdefault(reason, []).append(printable(name))
    for reason, names in by_reason.items():
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        click.echo(f"left out, {reason}: {', '.join(names[:_SHOWN])}{more}", err=True)
