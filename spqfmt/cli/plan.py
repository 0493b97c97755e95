"""`spqfmt plan`: where a model's weights would live under a memory ceiling."""

import json
import re
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from spqfmt.cli.device_table import kept_free, show_changed, show_device_plan
from spqfmt.cli.failures import about
from spqfmt.cli.parameters import MODEL
from spqfmt.cli.pictures import html_option, write_page
from spqfmt.cli.units import percent, printable, size
from spqfmt.residency.device_rates import DEFAULT, read_rates

if TYPE_CHECKING:
    from spqfmt.residency.model_plan import ModelPlan
    from spqfmt.residency.plan import PlannedPart


@click.command("plan")
@click.argument("file", type=MODEL)
@click.option("--memory", help="Ceiling for all that is held of the weights, such as 300MiB. [default: none]")
@click.option(
    "--device",
    type=click.Choice(("cpu", "cuda")),
    default="cpu",
    show_default=True,
    help="Where the model runs.",
)
@click.option("--host-memory", help="With cuda, the ceiling for what waits in host memory. [default: none]")
@click.option(
    "--device-rates",
    help="With cuda, how fast the device is: a JSON file that `tools/gpu/gpu_check.py --rates` wrote, or a card "
    "(rtx4060, rtx4060ti, rtx4090, a100, h100) whose rates are assumed. [default: rtx4090]",
)
@click.option("--dtype", type=click.Choice(("float32", "float16", "bfloat16")), help="Compute in this dtype.")
@click.option(
    "--tokens", type=click.IntRange(min=1), default=2048, show_default=True, help="For the estimates on top."
)
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Sequences at once.")
@html_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout and nothing else.")
def plan(
    *,
    file: Path,
    memory: str | None,
    device: str,
    host_memory: str | None,
    device_rates: str | None,
    dtype: str | None,
    tokens: int,
    batch: int,
    html: Path | None,
    as_json: bool,
) -> None:
    """Show where the weights of FILE would live while it runs, and how long a token would take. Reads no weights.

    \b
    spqfmt plan model.spq --memory 300MiB
    spqfmt plan model.spq --memory 300MiB --html plan.html
    spqfmt plan model.spq --memory 300MiB --json
    spqfmt plan model.spq --device cuda --memory 8GiB --host-memory 16GiB
    """
    if device == "cuda":
        if html is not None:
            raise click.UsageError("--html shows plans for the CPU; leave --device out")
        _plan_for_device(
            file,
            memory,
            host_memory,
            device_rates=device_rates,
            dtype=dtype,
            tokens=tokens,
            batch=batch,
            as_json=as_json,
        )
        return
    if device_rates is not None or host_memory is not None:
        raise click.UsageError("--device-rates and --host-memory go with --device cuda")
    from spqfmt.residency.plain import plan_plain

    with about(file):
        planned = plan_plain(file, memory=memory, dtype=dtype, n_tokens=tokens, batch=batch)
    if planned is None:
        # Only its class knows; torch takes seconds to import.
        from spqfmt.loaders.plan import plan_model

        with about(file):
            planned = plan_model(file, memory=memory, dtype=dtype, n_tokens=tokens, batch=batch)
    if html is not None:
        from spqfmt.pages.plan import plan_page

        write_page(html, plan_page(planned, file.name))
    if as_json:
        click.echo(json.dumps(planned.to_json()))
    elif html is None:
        _show(planned)


def _plan_for_device(
    file: Path,
    memory: str | None,
    host_memory: str | None,
    device_rates: str | None,
    dtype: str | None,
    tokens: int,
    batch: int,
    *,
    as_json: bool,
) -> None:
    from spqfmt.loaders.plan import plan_for_device

    with about(file):
        planned = plan_for_device(
            file,
            memory=memory,
            host_memory=host_memory,
            dtype=dtype,
            n_tokens=tokens,
            batch=batch,
            rates=DEFAULT if device_rates is None else read_rates(device_rates),
        )
    if as_json:
        click.echo(json.dumps(planned.to_json()))
    else:
        show_device_plan(planned, _layer)


def _row(part: "PlannedPart") -> str:
    """The row that a part belongs to: that of its layer, or of the layer's experts."""
    layer = _layer(part.item.part.record.name)
    return layer if part.item.share is None else f"{layer} experts"


def _experts(planned: "ModelPlan") -> str:
    """What the plan expects of experts; nothing where there are none."""
    shares = sorted({part.item.share for part in planned.plan.parts if part.item.share is not None})
    if not shares:
        return ""
    each = " or ".join(f"{percent(share)}" for share in shares)
    return (
        f"experts: a token is expected to use {each} of those in a layer; they are read from disk when they are "
        "chosen, and those that are used often stay in memory"
    )


_IN_A_LAYER = re.compile(r"(.+?\.\d+)\.")


def _layer(tensor: str) -> str:
    """model.layers.3.mlp.up_proj.weight -> model.layers.3; other tensors stand for themselves."""
    match = _IN_A_LAYER.match(tensor)
    return printable(match[1] if match else tensor)


def _show(planned: "ModelPlan") -> None:
    plan, on_top = planned.plan, planned.on_top
    # Few files have codes that are held narrow.
    narrow = ("narrow",) if plan.bytes_in("narrow") else ()
    table = Table(
        "layer", "decoded", *narrow, "compressed", "on disk", "ms a token", box=None, pad_edge=False
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for layer, parts in groupby(plan.parts, _row):
        row = dict.fromkeys(("decoded", "narrow", "compressed", "disk", "ms"), 0.0)
        for part in parts:
            row[part.residency] += part.item.part.stored_bytes if part.residency == "disk" else part.bytes
            row["ms"] += part.expected_ms
        sizes = (size(row[key]) if row[key] else "" for key in ("decoded", *narrow, "compressed", "disk"))
        table.add_row(layer, *sizes, f"{row['ms']:.2f}")
    Console(highlight=False).print(table)
    fixed = plan.fixed
    narrowed = f"{size(plan.bytes_in('narrow'))} narrow, " if narrow else ""
    ceiling = "no ceiling" if plan.memory_bytes is None else f"ceiling {size(plan.memory_bytes)}"
    click.echo(
        f"{ceiling}: {size(plan.held_bytes)} held, "
        f"{size(plan.bytes_in('decoded'))} decoded, {narrowed}{size(plan.bytes_in('compressed'))} compressed, "
        f"{size(fixed.floats + fixed.sides)} parameters, scales and outliers, "
        f"{size(fixed.ring + fixed.rows + fixed.staging + fixed.workspace)} buffers{kept_free(fixed)}"
    )
    click.echo(
        f"the file's weights: {size(plan.stored_bytes)} stored, {size(plan.decoded_bytes)} decoded; "
        f"smallest ceiling {size(plan.smallest_bytes)} ({plan.smallest_bytes} bytes), "
        f"with all of them in memory {size(plan.in_memory_bytes)} ({plan.in_memory_bytes} bytes)"
    )
    show_changed(planned)
    if experts := _experts(planned):
        click.echo(experts)
    click.echo(
        f"expected: {plan.serial_ms:.1f} ms a token one after the other, {plan.overlapped_ms:.1f} ms overlapped"
    )
    click.echo(
        f"on top, for {on_top.n_tokens} tokens in a batch of {on_top.batch}: KV cache about "
        f"{size(on_top.kv_cache_bytes)}, activations at most about {size(on_top.activation_bytes)}"
    )
