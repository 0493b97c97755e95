"""What the driver says that a model under a ceiling takes, beside what the ceiling bounds."""

from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Event, Thread

import torch
from gpu_lines import NotHereError, Options
from gpu_machine import Check, open_check
from gpu_model import ceilings, generate, loaded, model_file

WATCH_SECONDS = 0.005


def driver_memory(options: Options) -> None:
    """What the driver says was taken of the device: context, workspaces and activations are in it too."""
    check = open_check(options)
    path = model_file(options, check.sizes)
    for name in ("half way", "least on both"):
        check.case(name, partial(_taken, check, path, name))


def _taken(check: Check, path: Path, name: str) -> None:
    if not check.on_gpu:
        raise NotHereError("only the driver of a GPU tells it")
    ceiling = ceilings(path)[name]
    torch.cuda.empty_cache()
    free = [torch.cuda.mem_get_info(check.device)[0]]
    stop = Event()

    def watch() -> None:
        while not stop.wait(WATCH_SECONDS):
            free.append(torch.cuda.mem_get_info(check.device)[0])

    watcher = Thread(target=watch, daemon=True)
    watcher.start()
    try:
        with loaded(check, path, *ceiling) as (model, engine, _):
            generate(check, model)
            planned_host = engine.plan.host_held_bytes
            pinned = _pinned_bytes()
    finally:
        stop.set()
        watcher.join()
    assert ceiling[0] is not None
    note = f"of {ceiling[0] / 2**20:.1f} for weights alone"
    check.add(f"{name}: device memory by the driver", (free[0] - min(free)) / 2**20, unit="MiB", note=note)
    if pinned is not None:
        note = f"the plan holds {planned_host / 2**20:.1f} on the host"
        check.add(f"{name}: pinned host memory", pinned / 2**20, unit="MiB", note=note)


def _pinned_bytes() -> int | None:
    """Page-locked memory that torch has taken of the host, rounded as it rounds; None where it does not tell."""
    with suppress(AttributeError, KeyError, RuntimeError):
        return int(torch.cuda.host_memory_stats()["allocated_bytes.current"])
    return None
