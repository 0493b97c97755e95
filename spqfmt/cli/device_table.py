"""`spqfmt plan --device cuda`: the plan of a model on a device, as a table."""

from collections.abc import Callable
from itertools import groupby
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from spqfmt.cli.units import printable, size
from spqfmt.residency.inventory import Fixed

if TYPE_CHECKING:
    from spqfmt.residency.model_plan import ModelPlan

_RESIDENCIES = ("decoded", "compressed", "host", "disk")


def show_device_plan(planned: "ModelPlan", layer: Callable[[str], str]) -> None:
    """Print a row for each layer (what `layer` makes of a tensor's name), and totals."""
    plan, on_top = planned.plan, planned.on_top
    host = plan.on_host
    table = Table(
        "layer", "decoded", "compressed", "in host memory", "on disk", "ms a token", box=None, pad_edge=False
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for name, parts in groupby(plan.parts, lambda part: layer(part.item.part.record.name)):
        sizes, ms = dict.fromkeys(_RESIDENCIES, 0), 0.0
        for part in parts:
            stored = part.item.part.stored_bytes
            sizes[part.residency] += stored if part.residency == "disk" else part.bytes
            ms += part.expected_ms
        table.add_row(name, *(size(sizes[key]) if sizes[key] else "" for key in _RESIDENCIES), f"{ms:.2f}")
    Console(highlight=False).print(table)
    fixed = plan.fixed
    click.echo(
        f"device, {_ceiling(plan.memory_bytes)}: {size(plan.held_bytes)} held, {size(plan.bytes_in('decoded'))} "
        f"decoded, {size(plan.bytes_in('compressed'))} compressed, {size(fixed.floats + fixed.sides)} parameters, "
        f"scales and outliers, {size(fixed.ring + fixed.staging + fixed.workspace)} buffers{kept_free(fixed)}; "
        f"smallest ceiling {size(plan.smallest_bytes)} ({plan.smallest_bytes} bytes)"
    )
    click.echo(
        f"host, {_ceiling(host.memory_bytes)}: {size(plan.host_held_bytes)} held, {size(plan.bytes_in('host'))} "
        f"compressed, {size(host.lookups.held_bytes)} embeddings, {size(host.fixed_bytes)} pinned buffers; "
        f"smallest ceiling {size(host.smallest_bytes)} ({host.smallest_bytes} bytes)"
    )
    click.echo(f"the file's weights: {size(plan.stored_bytes)} stored, {size(plan.decoded_bytes)} decoded")
    show_changed(planned)
    if plan.fused_bytes:
        click.echo(
            f"multiplied as they are decoded, for 1 to 8 tokens: {size(plan.fused_bytes)} "
            "of what is compressed on the device"
        )
    rates = host.rates
    click.echo(
        f"expected: {plan.serial_ms:.1f} ms a token one after the other, {plan.overlapped_ms:.1f} ms overlapped, "
        f"from {'ASSUMED' if rates.assumed else 'measured'} rates of {rates.name}"
    )
    click.echo(
        f"on top on the device, for {on_top.n_tokens} tokens in a batch of {on_top.batch}: KV cache about "
        f"{size(on_top.kv_cache_bytes)}, activations at most about {size(on_top.activation_bytes)}"
    )


def kept_free(fixed: Fixed) -> str:
    """What a plan's first line says of room for weights that the model's own code reads, where it reads any."""
    return f", {size(fixed.values)} kept free for weights that the model's code reads" if fixed.values else ""


def show_changed(planned: "ModelPlan") -> None:
    """Print which layers are not packed since their class changes them, and what is decoded whole and why, if any."""
    if planned.changed:
        first, *more = planned.changed
        others = f" and {len(more)} more" if more else ""
        click.echo(f"not packed, as their class changes them: {printable(first)}{others}")
    reasons: dict[str, list[str]] = {}
    for name, why in planned.whole.items():
        reasons.setdefault(why, []).append(name)
    for why, names in reasons.items():
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        click.echo(f"decoded whole, as products do not take {why}: {printable(names[0])}{others}")


def _ceiling(n_bytes: int | None) -> str:
    return "no ceiling" if n_bytes is None else f"ceiling {size(n_bytes)}"
