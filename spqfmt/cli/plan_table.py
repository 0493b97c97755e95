"""`spqfmt pack --dry-run`: the plan, as a table or as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

import click
from rich.console import Console

from spqfmt.cli.names import tell_left_out
from spqfmt.cli.table import Column, Table
from spqfmt.cli.units import duration, percent, printable, size
from spqfmt.packing.estimate import Estimate
from spqfmt.packing.options import PackOptions
from spqfmt.packing.plan import PackPlan

if TYPE_CHECKING:
    from spqfmt.packing.projection import Projection


def print_plan(
    plan: PackPlan,
    options: PackOptions,
    left_out: Mapping[str, str],
    *,
    estimated: Estimate | None,
    projected: Projection | None,
    as_json: bool,
) -> None:
    """Print what would be done with each tensor, and which files would stay behind, with the reason."""
    if as_json:
        tensors = [
            {
                "name": tensor.source.name,
                "shape": list(tensor.source.shape),
                "dtype": tensor.source.dtype,
                "segment": segment,
                "treatment": tensor.treatment or "as it is",
                "form": tensor.source.form,
                "raw_bytes": tensor.raw_bytes,
            }
            for segment, members in plan.segments
            for tensor in members
        ]
        totals = {"method": options.method.name, "raw_bytes": plan.raw_bytes, "tensors": tensors}
        found = {
            "estimate": None if estimated is None else estimated._asdict(),
            "projection": None if projected is None else projected._asdict(),
        }
        click.echo(json.dumps(totals | found | {"left_out": dict(left_out)}))
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
    if estimated is not None:
        share = percent(estimated.tensor_bytes / max(1, plan.raw_bytes))
        click.echo(
            f"the file would take about {size(estimated.file_bytes)}, its tensors {size(estimated.tensor_bytes)}, "
            f"{share} of the source's, by {estimated.n_sampled} of them"
        )
    if projected is not None:
        n_samples = options.calibration.samples
        click.echo(
            f"it would take about {duration(projected.seconds)} on this machine, and {size(projected.peak_bytes)} of "
            f"memory: {duration(projected.running_seconds)} to run the model on {n_samples} samples, "
            f"{duration(projected.quantizing_seconds)} to quantize; reading and writing come on top"
        )
