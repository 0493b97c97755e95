"""The first run on a GPU, in one command: are the kernels right, how fast are they, do the ceilings hold.

    python tools/gpu/gpu_check.py [--device cuda] [--kernels triton|torch] [--model FILE.spq] [--json OUT] [--rates OUT]

One table on stdout, one JSON object with --json, and with --rates the measured rates that `spqfmt plan --device cuda
--device-rates FILE` takes. Exit code 1 when anything is wrong. `--device simulated` runs the same checks on the CPU,
small: its times are the CPU's and say nothing about a GPU.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from gpu_cases import Raw, chunk_cases, frames_of, matrix_cases, moved, packed_chunks
from gpu_report import FULL, SMALL, Check, Sizes, table

from spqfmt.errors import BackendError, CorruptError, SpqError
from spqfmt.kernels import native
from spqfmt.kernels.choose import kernels_for
from spqfmt.kernels.device import MAX_TOKENS, DeviceKernels, Matrix, UniformScales, raise_fault
from spqfmt.kernels.nvcomp import NvcompZstd
from spqfmt.loaders.device import CudaDevice, SimulatedDevice
from spqfmt.loaders.model import load_onto
from spqfmt.loaders.packed.options import packing_options
from spqfmt.loaders.plan import plan_for_device
from spqfmt.residency.device_rates import DEFAULT, DeviceRates

BLOCK_LOG2 = (12, 13, 14, 15, 16)
ALLOCATION_BYTES = 512
"""What torch's allocator on CUDA gives is a multiple of this."""
PROMPT = torch.tensor([[(i * 37 + 11) % 256 for i in range(16)]])


def check_kernels(check: Check) -> None:
    """Every kernel against the plain twin on the CPU, or against what was encoded."""
    section, twin = "kernels", kernels_for(torch.device("cpu"), "torch")
    for name, raw, chunk in chunk_cases():
        decoded, _ = _decode(check, [chunk], [raw])
        check.add(
            section, f"decode {name}", None, unit="", ok=torch.equal(decoded.cpu(), torch.from_numpy(raw))
        )
    check.add(section, "decode of a damaged chunk is refused", None, unit="", ok=_refuses_damage(check))
    planes = torch.randint(0, 256, (2, 1000), dtype=torch.uint8)
    for rotated in (False, True):
        expected, found = torch.empty(1000, dtype=torch.int16), check.on(torch.empty(1000, dtype=torch.int16))
        twin.merge_planes(planes, expected, rotated=rotated)
        check.kernels.merge_planes(check.on(planes), found, rotated=rotated)
        check.add(
            section, f"merge planes, rotated {rotated}", None, unit="", ok=torch.equal(found.cpu(), expected)
        )
    for name, matrix, codes in matrix_cases():
        _check_matrix(check, twin, name, matrix=matrix, codes=codes)


def _check_matrix(check: Check, twin: DeviceKernels, name: str, matrix: Matrix, codes: torch.Tensor) -> None:
    there, codes_there = moved(matrix, check.device), check.on(codes)
    channels = range(matrix.n_channels)
    shape = matrix.shape
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        expected, found = torch.empty(shape, dtype=dtype), check.on(torch.empty(shape, dtype=dtype))
        twin.dequantize(codes, matrix, channels, expected)
        check.kernels.dequantize(codes_there, there, channels, found)
        same = torch.equal(found.cpu().view(torch.uint8), expected.view(torch.uint8))
        check.add(
            "kernels", f"dequantize {name} to {str(dtype).removeprefix('torch.')}", None, unit="", ok=same
        )
    if matrix.by_columns:
        return
    weights = torch.empty(shape)
    twin.dequantize(codes, matrix, channels, weights)
    for n_tokens in (1, 3, MAX_TOKENS):
        x = torch.randn(n_tokens, shape[1], generator=torch.Generator().manual_seed(n_tokens))
        y = check.on(torch.empty(n_tokens, shape[0]))
        check.kernels.multiply(check.on(x), codes_there, there, rows=channels, y=y)
        exact, size = x.double() @ weights.double().t(), x.double().abs() @ weights.double().abs().t()
        right = bool(((y.cpu().double() - exact).abs() <= 1e-5 * size + 1e-6).all())
        check.add("kernels", f"multiply {name}, {n_tokens} tokens", None, unit="", ok=right)


def _decode(check: Check, chunks: list[bytes], raws: list[Raw]) -> tuple[torch.Tensor, Callable[[], None]]:
    """What chunks decode to on the device, and how to do it again."""
    sizes = [raw.size for raw in raws]
    stored, plan, tables, error = packed_chunks(chunks, sizes, check.device)
    out = torch.full((sum(sizes),), 0xA5, dtype=torch.uint8, device=check.device)

    def run() -> None:
        check.kernels.decode_chunks(stored, plan, out, tables=tables, error=error)

    run()
    raise_fault(int(error))
    return out, run


def _refuses_damage(check: Check) -> bool:
    raw = np.random.default_rng(3).normal(0, 20, 40_000).astype(np.int8).view(np.uint8)
    chunk = bytearray(native.rans_encode(raw))
    chunk[len(chunk) // 2] ^= 0x40
    try:
        _decode(check, [bytes(chunk)], [raw])
    except CorruptError:
        return True
    return False


def check_rates(check: Check) -> None:
    """Memory and bus, decoding by block size and nvCOMP's zstd beside it, products."""
    n_bytes, device = check.sizes.decode_bytes, check.device
    source = torch.zeros(n_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    host = torch.zeros(n_bytes, dtype=torch.uint8, pin_memory=check.on_gpu)
    check.figures["move"] = n_bytes / check.seconds(lambda: target.copy_(source))
    check.figures["copy"] = n_bytes / check.seconds(lambda: target.copy_(host, non_blocking=True))
    tiny, small = torch.zeros(64, device=device), torch.empty(64, device=device)
    check.figures["operation_s"] = check.seconds(lambda: small.copy_(tiny))
    memory = 2 * check.figures["move"]
    check.add("memory", "read and written by copying", memory / 1e9, unit="GB/s", ok=None)
    check.add("memory", "from pinned host memory", check.figures["copy"] / 1e9, unit="GB/s", ok=None)
    raw = np.random.default_rng(0).normal(0, 25, n_bytes).clip(-127, 127).astype(np.int8).view(np.uint8)
    per_chunk = min(n_bytes, 1 << 20)
    parts = [raw[at : at + per_chunk] for at in range(0, n_bytes, per_chunk)]
    for block_log2 in BLOCK_LOG2:
        chunks = [native.rans_encode(part, block_log2) for part in parts]
        found, run = _decode(check, chunks, parts)
        right = torch.equal(found.cpu(), torch.from_numpy(raw))
        rate = n_bytes / check.seconds(run)
        touched = (sum(map(len, chunks)) + n_bytes) / n_bytes * rate
        check.figures["rans"] = max(check.figures.get("rans", 0.0), rate)
        note = f"{touched / memory:.0%} of the memory's bandwidth"
        check.add(
            "decode", f"rans, blocks of {1 << block_log2} bytes", rate / 1e9, unit="GB/s", ok=right, note=note
        )
    _check_nvcomp(check, parts, raw)
    _check_products(check, memory)


def _check_nvcomp(check: Check, parts: list[Raw], raw: Raw) -> None:
    try:
        zstd = NvcompZstd(check.device)
    except BackendError as error:
        check.add("decode", "zstd by nvCOMP", None, unit="", ok=None, note=str(error))
        return
    sent, jobs = frames_of(parts, check.device)
    out = torch.empty(raw.size, dtype=torch.uint8, device=check.device)
    rate = raw.size / check.seconds(lambda: zstd.decode(sent, jobs, out))
    right = torch.equal(out.cpu(), torch.from_numpy(raw))
    check.figures["zstd"] = rate
    fell = f"{zstd.n_fallbacks} batches fell back to the CPU" if zstd.n_fallbacks else ""
    check.add(
        "decode", "zstd by nvCOMP", rate / 1e9, unit="GB/s", ok=right and not zstd.n_fallbacks, note=fell
    )


def _check_products(check: Check, memory: float) -> None:
    edge, n = check.sizes.edge, check.sizes.n_matrices
    matrix = Matrix((edge, edge), "i8", UniformScales(torch.ones(edge, device=check.device)))
    codes = [torch.randint(0, 256, (edge * edge,), dtype=torch.uint8, device=check.device) for _ in range(n)]
    for n_tokens in (1, MAX_TOKENS):
        x = torch.randn(n_tokens, edge, device=check.device).bfloat16()
        y = torch.empty(n_tokens, edge, device=check.device)

        def run(x: torch.Tensor = x, y: torch.Tensor = y) -> None:
            for each in codes:
                check.kernels.multiply(x, each, matrix, rows=range(edge), y=y)

        rate = n * edge * edge / check.seconds(run)
        if n_tokens == 1:
            check.figures["compute"] = rate
        note = f"{rate / memory:.0%} of the memory's bandwidth"
        check.add(
            "product", f"int8 codes, {n_tokens} tokens", rate / 1e9, unit="GB/s of codes", ok=None, note=note
        )


def check_model(check: Check, path: Path) -> None:
    """Tokens a second and peak memory at ceilings from all decoded to all on disk; the same tokens at each."""
    whole = plan_for_device(path, rates=DEFAULT).plan
    smallest, host = whole.smallest_bytes, whole.on_host.smallest_bytes
    middle = (smallest + whole.held_bytes) // 2
    ceilings = (
        ("all decoded", None, None),
        ("half way", middle, None),
        ("least on the device", smallest, None),
        ("least on both", smallest, host),
    )
    expected: list[int] | None = None
    for name, memory, host_memory in ceilings:
        tokens, rate, peak, plan_bytes, note = _generate(check, path, memory, host_memory)
        expected = expected or tokens
        check.add("model", f"{name}", rate, unit="tokens/s", ok=tokens == expected, note=note)
        limit = plan_bytes if memory is None else memory
        check.add(
            "model",
            f"{name}: peak device memory",
            peak / 2**20,
            unit="MiB",
            ok=peak <= limit,
            note=f"of {limit / 2**20:.1f}",
        )


def _generate(
    check: Check, path: Path, memory: int | None, host_memory: int | None
) -> tuple[list[int], float, int, int, str]:
    """Tokens, tokens a second, device memory at its peak without activations, the plan's bytes, and residencies."""
    device = CudaDevice(check.device) if check.on_gpu else SimulatedDevice()
    if check.on_gpu:
        torch.cuda.reset_peak_memory_stats(check.device)
    before = torch.cuda.memory_allocated(check.device) if check.on_gpu else 0
    wanted = packing_options(
        path, "cuda", memory, packed=memory is None or None, activations=None, host_memory=host_memory
    )
    model, _ = load_onto(path, device.torch_device, device, wanted)
    engine = model.packed_weights
    peak = device.allocated_bytes + sum(parameter.nbytes for parameter in model.parameters())
    if check.on_gpu:
        # torch rounds each allocation up; the plan does not count that.
        rounding = ALLOCATION_BYTES * (4 + len(list(model.parameters())))
        peak = torch.cuda.max_memory_allocated(check.device) - before - rounding
    prompt = PROMPT.to(check.device)
    with torch.inference_mode():
        for _ in range(2):
            begun = perf_counter()
            ids = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=check.sizes.n_tokens,
                min_new_tokens=check.sizes.n_tokens,
                do_sample=False,
            )
            tokens = ids[0].tolist()
            seconds = perf_counter() - begun
    plan = engine.plan
    note = ", ".join(
        f"{name} {plan.bytes_in(name) / 2**20:.1f} MiB" for name in ("decoded", "compressed", "host")
    )
    engine.close()
    return tokens, check.sizes.n_tokens / seconds, peak, plan.held_bytes, note


def make_model(folder: Path, sizes: Sizes) -> Path:
    """A random Llama, packed to INT8 by row."""
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
        transformers.AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(folder)
    spqfmt.pack(folder, folder / "model.spq", method="rtn")
    return folder / "model.spq"


def measured_rates(check: Check, name: str) -> DeviceRates:
    """What was measured, as the planner takes it; disk, host and a missing nvCOMP stay as assumed."""
    fields = asdict(DEFAULT) | check.figures | {"name": name, "assumed": not check.on_gpu}
    return DeviceRates(**fields)


def run(
    device: str, kernels: str | None, model: Path | None, sizes: Sizes | None = None
) -> tuple[Check, str]:
    """All checks, and the name of what they ran on."""
    if device == "simulated":
        torch_device, name = torch.device("cpu"), "the CPU: NOT a GPU, times say nothing about one"
    else:
        torch_device = CudaDevice(device).torch_device
        name = torch.cuda.get_device_name(torch_device)
    sizes = sizes or (FULL if torch_device.type == "cuda" else SMALL)
    check = Check(torch_device, kernels_for(torch_device, kernels), sizes)
    check_kernels(check)
    check_rates(check)
    with tempfile.TemporaryDirectory() as folder:
        check_model(check, model or make_model(Path(folder), sizes))
    return check, name


def main(arguments: list[str] | None = None) -> int:
    """Run the tool, whose help is the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--kernels")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rates", type=Path)
    options = parser.parse_args(arguments)
    try:
        check, name = run(options.device, options.kernels, options.model)
    except SpqError as error:
        print(f"gpu_check: {error}", file=sys.stderr)
        return 1
    rates = measured_rates(check, name)
    right = all(row.ok is not False for row in check.rows)
    print(f"{name}; kernels: {check.kernels.name}; {'all right' if right else 'SOMETHING IS WRONG'}")
    print("\n".join(table(check)))
    result = {
        "device": name,
        "measured_on_gpu": check.on_gpu,
        "kernels": check.kernels.name,
        "ok": right,
        "rates": rates.to_json(),
        "rows": [asdict(row) for row in check.rows],
    }
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if options.rates is not None:
        options.rates.write_text(json.dumps(rates.to_json(), indent=1) + "\n", encoding="utf-8")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
