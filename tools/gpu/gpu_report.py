"""The report of tools/gpu/gpu_check.py, made from whatever lines were written."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from gpu_lines import Line, figures_of, rows_of

from spqfmt.residency.device_rates import DEFAULT, DeviceRates

_MEASURED = ("copy", "rans", "move", "compute", "operation_s")
NOT_A_GPU = "the CPU: NOT a GPU, times say nothing about one"


def section_states(lines: list[Line]) -> dict[str, tuple[str, str]]:
    """How each section ended, and why: "cut off" where nobody saw its end. A fall stays though the rest was run."""
    run = next((line for line in lines if line["kind"] == "run"), {})
    states = dict.fromkeys(run.get("sections", ()), ("not run", "the run was cut off before"))
    fallen: dict[str, list[tuple[str, str]]] = {}
    for line in lines:
        if line["kind"] == "begin":
            states[line["section"]] = ("cut off", "the run ended while it was under way")
        elif line["kind"] == "end":
            states[line["section"]] = (line["status"], line["note"])
            if line["status"] in {"died", "hung"}:
                fallen.setdefault(line["section"], []).append((line["status"], line["note"]))
    for name, falls in fallen.items():
        end, status = states[name], falls[0][0]
        notes = "; ".join(note for _, note in falls)
        states[name] = (status, f"{notes}; the rest of it was run" if end[0] == "done" else notes)
    return states


def summary(lines: list[Line]) -> dict[str, Any]:
    """The whole result as one JSON object."""
    states, rows, figures = section_states(lines), rows_of(lines), figures_of(lines)
    wrong = any(row.ok is False for row in rows)
    complete = bool(states) and all(status == "done" for status, _ in states.values())
    name, on_gpu = figures.get("device", "no device was reached"), bool(figures.get("on_gpu", False))
    return {
        "device": name,
        "measured_on_gpu": on_gpu,
        "kernels": figures.get("kernels"),
        "ok": complete and not wrong,
        "wrong": wrong,
        "complete": complete,
        "rates": rates_of(figures).to_json(),
        "sections": {name: {"status": status, "note": note} for name, (status, note) in states.items()},
        "rows": [asdict(row) for row in rows],
    }


def rates_of(figures: dict[str, Any]) -> DeviceRates:
    """What was measured, as the planner takes it; disk, host and a missing nvCOMP stay as assumed.

    Where one of the others is missing, or this was no GPU, all of it counts as assumed.
    """
    found = {name: figures[name] for name in (*_MEASURED, "zstd", "fused") if name in figures}
    assumed = not figures.get("on_gpu", False) or any(name not in found for name in _MEASURED)
    name = figures.get("device", DEFAULT.name)
    return DeviceRates(**(asdict(DEFAULT) | found | {"name": name, "assumed": assumed}))


def shown(lines: list[Line]) -> Iterator[str]:
    """The report, for a reader: the verdict, the rows, and each section that did not end well."""
    result = summary(lines)
    verdict = "all right"
    if not result["ok"]:
        verdict = "SOMETHING IS WRONG" if result["wrong"] else "NOT ALL WAS RUN"
    yield f"{result['device']}; kernels: {result['kernels']}; {verdict}"
    yield f"{'what':66} {'value':>10} {'unit':14} {'right':6} note"
    for row in rows_of(lines):
        value = "" if row.value is None else f"{row.value:.3g}"
        right = {True: "yes", False: "NO", None: ""}[row.ok]
        yield f"{row.section + ': ' + row.what:66} {value:>10} {row.unit:14} {right:6} {row.note}".rstrip()
    for name, state in result["sections"].items():
        if state["status"] != "done":
            yield f"section {name}: {state['status']}; {state['note']}"
