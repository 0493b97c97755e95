"""A step of LoRA on packed weights beside one on the same weights as floats: processor time and memory.

python tools/bench/lora_step.py MODEL.spq [--memory 150MiB] [--batch 1 --length 256 --rank 8] [--steps 7] [--threads 2]

Times are of user and system together, steps of both in turns in one process: medians, and the least and the most.
Memory is what a process of its own holds more at its most, from before it loads the model until after three steps;
with --checkpointing, layers are computed again on the way back; with --adapter-dtype bfloat16, the adapter is not in
float32, as PEFT makes it, for which each of its layers keeps its input once more.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

import spqfmt

WARM = 2


def stepper(path: str, packing: dict[str, Any], options: argparse.Namespace) -> Callable[[], float]:
    """Loads the model with an adapter, and gives what makes a step and returns its loss."""
    base, _ = spqfmt.load_model(path, dtype="bfloat16", **packing)
    if options.checkpointing:
        base.gradient_checkpointing_enable()
        base.enable_input_require_grads()
    lora = LoraConfig(r=options.rank, target_modules="all-linear", task_type="CAUSAL_LM")
    model: Any = get_peft_model(base, lora, autocast_adapter_dtype=options.adapter_dtype == "float32")
    model.train()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-4)
    ids = torch.randint(0, base.config.vocab_size, (options.batch, options.length))

    def step() -> float:
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.item())

    return step


def processor_seconds() -> float:
    """User and system time of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def status(key: str) -> int:
    """A value of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{key}:"))


def held(path: str, packing: dict[str, Any], options: argparse.Namespace) -> dict[str, int]:
    """Bytes that the model and its steps add to this process: at the most, and after them."""
    import peft.tuners.lora.layer  # noqa: F401  # what is loaded with the first adapter is not the model's

    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    step = stepper(path, packing, options)
    for _ in range(3):
        step()
    return {"peak": status("VmHWM") - before, "after": status("VmRSS") - before}


def main() -> None:
    """Measure both, and write what was found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--memory")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--adapter-dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument(
        "--held", choices=["floats", "packed"], help="measure the memory of one, in this process"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    packings: dict[str, dict[str, Any]] = {
        "floats": {"packed": False},
        "packed": {"memory": options.memory} if options.memory else {"packed": True},
    }
    if options.held:
        print(json.dumps(held(options.model, packings[options.held], options)))
        return
    for name in packings:
        command = [sys.executable, __file__, *sys.argv[1:], "--held", name]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(
            f"{name}: {found['peak'] / 2**20:.0f} MiB at the most, {found['after'] / 2**20:.0f} after a step"
        )
    steps = {name: stepper(options.model, packing, options) for name, packing in packings.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(WARM + options.steps):
        for name, step in steps.items():
            before = processor_seconds()
            step()
            if number >= WARM:
                times[name].append(processor_seconds() - before)
    for name, of_name in times.items():
        print(
            f"{name}: {statistics.median(of_name):.3f} s of processor time a step "
            f"({min(of_name):.3f} to {max(of_name):.3f})"
        )
    ratios = [packed / floats for packed, floats in zip(times["packed"], times["floats"], strict=True)]
    print(f"packed / floats: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
