"""A model at its residencies: the same tokens at each, its speed, its memory, and what the plan said of them."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from gpu_lines import NotHereError, Options
from gpu_machine import Check, Sizes, open_check
from gpu_report import rates_of

from spqfmt.loaders.device import CudaDevice, SimulatedDevice
from spqfmt.loaders.device.seam import Device
from spqfmt.loaders.model import load_onto
from spqfmt.loaders.packed.options import packing_options
from spqfmt.loaders.plan import plan_for_device
from spqfmt.residency.device_rates import DEFAULT
from spqfmt.residency.plan import Plan

ALLOCATION_BYTES = 512
"""What torch's allocator on CUDA gives is a multiple of this."""
PROMPT = torch.tensor([[(i * 37 + 11) % 256 for i in range(16)]])
Ceiling = tuple[int | None, int | None]


def make(options: Options) -> None:
    """Make the file that later sections load."""
    check = open_check(options)

    def run() -> None:
        begun = perf_counter()
        path = model_file(options, check.sizes)
        note = f"{path.stat().st_size / 2**20:.1f} MiB"
        check.add("a model is packed", perf_counter() - begun, unit="s", note=note)

    check.case("a model is packed", run)


def model_file(options: Options, sizes: Sizes) -> Path:
    """The model that was given, or a random Llama packed to INT8 by row, made once a run."""
    if options.model is not None:
        return options.model
    done = options.folder / "model.spq"
    if done.exists():
        return done
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))
    import tiny
    import transformers

    import spqfmt

    shape = {
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.hidden * 11 // 4,
        "vocab_size": 8 * sizes.hidden,
    }
    config = transformers.LlamaConfig(**{**tiny._LLAMA, **shape, "num_hidden_layers": sizes.n_layers})
    with torch.random.fork_rng(devices=[]), tiny.quiet():
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(options.folder)
    spqfmt.pack(options.folder, done, method="rtn")
    return done


def whole_plan(path: Path) -> Plan:
    """The plan without a ceiling, whose bytes the ceilings come from."""
    return plan_for_device(path, rates=DEFAULT).plan


def ceilings(path: Path) -> dict[str, Ceiling]:
    """The ceilings by name, from all decoded to all on disk."""
    whole = whole_plan(path)
    smallest, host = whole.smallest_bytes, whole.on_host.smallest_bytes
    return {
        "all decoded": (None, None),
        "half way": ((smallest + whole.held_bytes) // 2, None),
        "least on the device": (smallest, None),
        "least on both": (smallest, host),
    }


@contextmanager
def loaded(
    check: Check, path: Path, memory: int | None, host_memory: int | None
) -> Iterator[tuple[Any, Any, Device]]:
    """The model under ceilings, its engine and its device."""
    device = CudaDevice(check.device) if check.on_gpu else SimulatedDevice()
    wanted = packing_options(
        path, "cuda", memory, packed=memory is None or None, activations=None, host_memory=host_memory
    )
    model, _ = load_onto(path, device.torch_device, device, wanted)
    try:
        yield model, model.packed_weights, device
    finally:
        model.packed_weights.close()


def residencies(options: Options) -> None:
    """Tokens a second and peak memory at each ceiling."""
    check = open_check(options)
    check_model(check, model_file(options, check.sizes))


def check_model(check: Check, path: Path) -> None:
    """The same tokens at every ceiling, and no more memory than it."""
    for name, ceiling in ceilings(path).items():
        check.case(name, partial(_residency, check, path, name, ceiling))


def _residency(check: Check, path: Path, name: str, ceiling: Ceiling) -> None:
    if check.on_gpu:
        torch.cuda.reset_peak_memory_stats(check.device)
    before = torch.cuda.memory_allocated(check.device) if check.on_gpu else 0
    with loaded(check, path, *ceiling) as (model, engine, device):
        parameters = list(model.parameters())
        peak = device.allocated_bytes + sum(parameter.nbytes for parameter in parameters)
        if check.on_gpu:
            # torch rounds each allocation up; the plan does not count that.
            rounding = ALLOCATION_BYTES * (4 + len(parameters))
            peak = torch.cuda.max_memory_allocated(check.device) - before - rounding
        tokens, rate = generate(check, model)
        plan = engine.plan
    if "tokens" not in check.figures:
        check.figure("tokens", tokens)
    check.figure(f"tokens a second, {name}", rate)
    places = ("decoded", "compressed", "host")
    note = ", ".join(f"{place} {plan.bytes_in(place) / 2**20:.1f} MiB" for place in places)
    check.add(name, rate, unit="tokens/s", ok=tokens == check.figures["tokens"], note=note)
    limit = plan.held_bytes if ceiling[0] is None else ceiling[0]
    of = f"of {limit / 2**20:.1f}"
    check.add(f"{name}: peak device memory", peak / 2**20, unit="MiB", ok=peak <= limit, note=of)


def generate(check: Check, model: Any) -> tuple[list[int], float]:
    """Tokens of the second round, and how many came in a second."""
    prompt = PROMPT.to(check.device)
    n_tokens = {"max_new_tokens": check.sizes.n_tokens, "min_new_tokens": check.sizes.n_tokens}
    with torch.inference_mode():
        for _ in range(2):
            begun = perf_counter()
            ids = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, **n_tokens)
            tokens = ids[0].tolist()
            seconds = perf_counter() - begun
    return tokens, check.sizes.n_tokens / seconds


def predicted(options: Options) -> None:
    """What the plan makes of the measured rates, beside what the model took."""
    check = open_check(options)
    path = model_file(options, check.sizes)
    for name, ceiling in ceilings(path).items():
        check.case(name, partial(_predicted, check, path, name, ceiling))


def _predicted(check: Check, path: Path, name: str, ceiling: Ceiling) -> None:
    rate = check.figures.get(f"tokens a second, {name}")
    if rate is None:
        raise NotHereError("its speed was not measured")
    rates = rates_of(check.figures)
    plan = plan_for_device(path, memory=ceiling[0], host_memory=ceiling[1], rates=rates).plan
    seconds = max(plan.stages)
    said = "assumed rates" if rates.assumed else "measured rates"
    note = f"{1e3 / rate:.3g} ms measured, {1 / rate / seconds:.1f} times as long; {said}"
    check.add(f"{name}: predicted", 1e3 * seconds, unit="ms a token", note=note)
