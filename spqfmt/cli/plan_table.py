"""`spqfmt pack --dry-run`: the plan, as a table or as JSON."""

import json
from collections.abc import Mapping

import click
from rich.console import Console

from spqfmt.cli.names import tell_left_out
from spqfmt.cli.table import Column, Table
from spqfmt.cli.units import printable, size
from spqfmt.packing.options import PackOptions
from spqfmt.packing.plan import PackPlan


def print_plan(plan: PackPlan, options: PackOptions, left_out: Mapping[str, str], *, as_json: bool) -> None:
    """Print what would be done with each tensor, and which files would stay behind, with the reason."""
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
        click.echo(json.dumps(totals | {"left_out": dict(left_out)}))
        return
    columns = (
        Column("tensor"),
        Column("shape", spare=1),
        Column("dtype", left=True, spare=2),
        Column("raw"),
        Column("treatment", left=True),
    )
    rows = [
        [
            printable(tensor.source.name),
            "x".join(map(str, tensor.source.shape)) or "scalar",
            tensor.source.dtype,
            size(tensor.raw_bytes) if tensor.raw_bytes else "",
            printable(tensor.treatment or "as it is"),
        ]
        for _, members in plan.segments
        for tensor in members
    ]
    Table(columns, rows).print(Console(highlight=False))
    tell_left_out(left_out)
    click.echo(f"{size(plan.raw_bytes)} to pack with method {options.method.name}; nothing was written")
