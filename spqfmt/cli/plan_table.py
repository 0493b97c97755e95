"""`spqfmt pack --dry-run`: the plan, as a table or as JSON."""

import json

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from spqfmt.cli.units import size
from spqfmt.pipeline.options import PackOptions
from spqfmt.pipeline.plan import PackPlan


def print_plan(plan: PackPlan, options: PackOptions, *, as_json: bool) -> None:
    """Print what would be done with each tensor."""
    if as_json:
        tensors = [
            {
                "name": tensor.source.name,
                "shape": list(tensor.source.shape),
                "dtype": tensor.source.dtype,
                "segment": segment,
                "treatment": tensor.treatment or "as it is",
                "raw_bytes": tensor.raw_bytes,
            }
            for segment, members in plan.segments
            for tensor in members
        ]
        totals = {"method": options.method.name, "raw_bytes": plan.raw_bytes, "tensors": tensors}
        click.echo(json.dumps(totals))
        return
    table = Table("tensor", "shape", "dtype", "size", "treatment", title=None)
    for _, members in plan.segments:
        for tensor in members:
            table.add_row(
                escape(tensor.source.name),
                " x ".join(map(str, tensor.source.shape)),
                tensor.source.dtype,
                size(tensor.raw_bytes),
                tensor.treatment or "as it is",
            )
    Console().print(table)
    click.echo(f"{size(plan.raw_bytes)} to pack with method {options.method.name}; nothing was written")
