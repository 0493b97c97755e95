"""How fast are memory, the bus and decoding: launches of the loader's size and larger ones, and its own pipeline."""

from functools import partial
from time import perf_counter

import numpy as np
import torch
from gpu_cases import Raw, frames_of
from gpu_kernels import beside_onto, decode_onto
from gpu_lines import NotHereError, Options
from gpu_machine import Check, open_check
from gpu_model import loaded, model_file, whole_plan

from spqfmt.codecs.chunks import TARGET_CHUNK_BYTES
from spqfmt.errors import BackendError
from spqfmt.kernels import native
from spqfmt.kernels.nvcomp import NvcompZstd
from spqfmt.loaders import load

BLOCK_LOG2 = (12, 13, 14, 15, 16)


def decode(options: Options) -> None:
    """The pipeline first: its rate is what the planner takes."""
    check = open_check(options)
    check_memory(check)
    for residency in ("compressed", "host"):
        check.case(f"pipeline, parts {residency}", partial(_pipeline, check, options, residency))
    part_bytes, n_bytes = load.DEVICE_PART_BYTES, check.sizes.decode_bytes
    sizes = (part_bytes, n_bytes) if part_bytes < n_bytes else (n_bytes,)
    for launch_bytes in sizes:
        for block_log2 in BLOCK_LOG2:
            check.case(
                f"rans, {launch_bytes >> 10} KiB a launch, blocks of {1 << block_log2} bytes",
                partial(_launch, check, launch_bytes, block_log2),
            )
    check.case("high bytes beside low ones", lambda: _beside(check))
    check.case("zstd by nvCOMP", lambda: _zstd(check))


def check_memory(check: Check) -> None:
    """Copies within the device and to it, and the least that an operation takes."""
    n_bytes, device = check.sizes.decode_bytes, check.device

    def within() -> None:
        source = torch.zeros(n_bytes, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        rate = n_bytes / check.seconds(lambda: target.copy_(source))
        check.figure("move", rate)
        check.add("memory, read and written by copying", 2 * rate / 1e9, unit="GB/s")

    def onto() -> None:
        host = torch.zeros(n_bytes, dtype=torch.uint8, pin_memory=check.on_gpu)
        target = torch.empty(n_bytes, dtype=torch.uint8, device=device)
        rate = n_bytes / check.seconds(lambda: target.copy_(host, non_blocking=True))
        check.figure("copy", rate)
        check.add("memory, from pinned host memory", rate / 1e9, unit="GB/s")

    def operation() -> None:
        tiny, small = torch.zeros(64, device=device), torch.empty(64, device=device)
        seconds = check.seconds(lambda: small.copy_(tiny))
        check.figure("operation_s", seconds)
        check.add("an operation of 256 bytes", seconds * 1e6, unit="µs")

    check.case("memory, read and written by copying", within)
    check.case("memory, from pinned host memory", onto)
    check.case("an operation of 256 bytes", operation)


def of_memory(check: Check, rate: float) -> str:
    """A rate beside that of the memory, where this is known."""
    move = check.figures.get("move")
    return f"{rate / (2 * move):.0%} of the memory's bandwidth" if move else ""


MIN_GROUPS = 2


def _raw(n_bytes: int) -> Raw:
    return np.random.default_rng(0).normal(0, 25, n_bytes).clip(-127, 127).astype(np.int8).view(np.uint8)


def _parts(raw: Raw) -> list[Raw]:
    return [raw[at : at + TARGET_CHUNK_BYTES] for at in range(0, raw.size, TARGET_CHUNK_BYTES)]


def _launch(check: Check, n_bytes: int, block_log2: int) -> None:
    raw = _raw(n_bytes)
    parts = _parts(raw)
    chunks = [native.rans_encode(part, block_log2) for part in parts]
    found, run = decode_onto(check, chunks, parts)
    right = torch.equal(found.cpu(), torch.from_numpy(raw))
    rate = n_bytes / check.seconds(run)
    if n_bytes == load.DEVICE_PART_BYTES and block_log2 == max(BLOCK_LOG2) and "rans" not in check.figures:
        # The pipeline told nothing: its launches of this size alone are next to it.
        check.figure("rans", rate)
    touched = (sum(map(len, chunks)) + n_bytes) / n_bytes * rate
    what = f"rans, {n_bytes >> 10} KiB a launch, blocks of {1 << block_log2} bytes"
    check.add(what, rate / 1e9, unit="GB/s", ok=right, note=of_memory(check, touched))


def _beside(check: Check) -> None:
    """What lossless BF16 takes: exponents decoded, beside a byte of each element as it is stored."""
    n = check.sizes.decode_bytes // 2
    exponents = np.random.default_rng(6).normal(120, 1.4, n).astype(np.uint8)
    lows = _parts(np.random.default_rng(7).integers(0, 256, n, np.uint8))
    chunks = [native.rans_encode(part) for part in _parts(exponents)]
    _, run = beside_onto(check, chunks, lows)
    rate = n / check.seconds(run)
    touched = (sum(map(len, chunks)) + 3 * n) / n * rate
    check.add("high bytes beside low ones", rate / 1e9, unit="G elements/s", note=of_memory(check, touched))


def _pipeline(check: Check, options: Options, residency: str) -> None:
    """All groups once in order, each lent as a product borrows it; those on the host cross the bus besides."""
    path = model_file(options, check.sizes)
    whole = whole_plan(path)
    memory = whole.in_memory_bytes if residency == "compressed" else whole.smallest_bytes
    with loaded(check, path, memory, None) as (_, engine, _):
        groups = engine.plan.on_host.groups
        places = [engine.plan.parts[group.first].residency for group in groups]
        streamed = [(n, group) for n, group in enumerate(groups) if places[n] != "decoded"]
        # One alone would be decoded once and stay.
        if len(streamed) < MIN_GROUPS or any(places[n] != residency for n, _ in streamed):
            raise NotHereError("the plan holds the parts otherwise")
        seconds = []
        for _ in range(1 + check.sizes.rounds):
            begun = perf_counter()
            for number, _ in streamed:
                with engine._pipeline.lend(number):
                    pass
            check.synchronize()
            seconds.append(perf_counter() - begun)
    n_bytes = sum(group.decoded_bytes for _, group in streamed)
    rate = n_bytes / float(np.median(seconds[1:]))
    if residency == "compressed":
        check.figure("rans", rate)
    note = (
        f"{len(streamed)} groups of {n_bytes / len(streamed) / 1024:.1f} KiB, in blocks as they were packed"
    )
    check.add(f"pipeline, parts {residency}", rate / 1e9, unit="GB/s", note=note)


def _zstd(check: Check) -> None:
    raw = _raw(check.sizes.decode_bytes)
    try:
        zstd = NvcompZstd(check.device)
    except BackendError as error:
        raise NotHereError(str(error)) from error
    sent, jobs = frames_of(_parts(raw), check.device)
    out = torch.empty(raw.size, dtype=torch.uint8, device=check.device)
    rate = raw.size / check.seconds(lambda: zstd.decode(sent, jobs, out))
    right = torch.equal(out.cpu(), torch.from_numpy(raw))
    check.figure("zstd", rate)
    fell = f"{zstd.n_fallbacks} batches fell back to the CPU" if zstd.n_fallbacks else ""
    ok = right and not zstd.n_fallbacks
    check.add("zstd by nvCOMP", rate / 1e9, unit="GB/s", ok=ok, note=fell)
