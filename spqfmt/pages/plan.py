"""The page of `spqfmt plan --html`."""

from itertools import groupby
from typing import TYPE_CHECKING

from spqfmt.pages.render import render
from spqfmt.pages.residency import residency_data
from spqfmt.reading.report.names import layer_of
from spqfmt.residency.plan import Plan

if TYPE_CHECKING:
    from spqfmt.residency.model_plan import ModelPlan

_SCRIPTS = ("text.js", "chart.js", "planner.js", "residency.js", "plan.js")


def plan_page(planned: "ModelPlan", name: str) -> str:
    """The plan of the file `name`; the slider begins at its ceiling."""
    plan = planned.plan
    data = residency_data(planned.inventory, planned.rates) | {"ceiling": plan.memory_bytes}
    return render(
        "plan.html", _SCRIPTS, data, name=name, plan=plan, on_top=planned.on_top, rows=_rows(plan), residency_note=""
    )  # fmt: skip


def _rows(plan: Plan) -> list[dict[str, object]]:
    """Bytes of each residency, as they are there, and milliseconds a token, by layer."""
    rows = []
    for layer, parts in groupby(plan.parts, lambda part: layer_of(part.item.part.record.name)):
        sizes = {"decoded": 0, "narrow": 0, "compressed": 0, "disk": 0}
        ms = 0.0
        for part in parts:
            sizes[part.residency] += part.item.part.stored_bytes if part.residency == "disk" else part.bytes
            ms += part.expected_ms
        rows.append({"layer": layer, **sizes, "ms": ms})
    return rows
