"""Tables of docs/gpu.md that are computed from the rates of cards alone: no pipeline runs for them."""

from dataclasses import replace

import numpy as np
from gpu_shapes import CODES, SHAPES, Codes, Shape, record

from spqfmt.kernels import native
from spqfmt.loaders.device.fused import fused_amounts
from spqfmt.loaders.load import DEVICE_PART_BYTES
from spqfmt.residency.device_rates import ANS_SHARE, ASSUMED, NVCOMP_ANS_SHARE, DeviceRates
from spqfmt.residency.groups import SIZES

LAUNCH_S = 8e-6
"""Host time of a launch through Triton: 5 microseconds (tools/gpu/host_time.py: 4.4 to 5.7) and 3 of the driver."""
STRAIGHT_LAUNCH_S = 5.6e-6
"""The same of our own kernels, two for each product straight from blocks: 2.6 and 3."""
TORCH_S = 5e-6
"""Host time of any other operation."""
OTHERS_A_LAYER, OTHERS = 33, 22
"""Other operations of transformers' own Llama for one token: counted by torch's dispatcher with the pinned version."""
AN_EXPERT, A_ROUTER = 4, 6
"""Those of an expert that is used, and of its layer besides: counted in OLMoE's blocks and the loader's experts."""


ON_DEVICE_S = 2e-6
"""A guess: what an operation takes on the device besides the bytes of a product. Other tables leave it out."""
GRAPH_S, NODE_S = 2e-6, 0.2e-6
"""Host time of a graph that is given again, and of each operation in it: NVIDIA's, for CUDA 11.8. Since 12.6 one whose
operations form a line takes 2.5 microseconds and a nanosecond for each (developer.nvidia.com/blog, "Constant time
launch for straight-line CUDA graphs", September 2024)."""
IN_A_GRAPH, BESIDES = 1494, 44
"""Operations of a token of a Llama of 32 layers with a cache that does not grow, and of transformers' generate besides
(tools/gpu/graph_host.py)."""
GRAPH_CALL_S = 0.14e-3
"""Our own work for a token that is a graph (tools/gpu/graph_host.py)."""


def others_s(shape: Shape) -> float:
    """Host time of a token for all that is not ours."""
    of_experts = AN_EXPERT * shape.active + A_ROUTER if shape.experts else 0
    return ((OTHERS_A_LAYER + of_experts) * shape.n_layers + OTHERS) * TORCH_S


def rates_table() -> str:
    """The rates that are assumed."""
    lines = [
        "| card (rates ASSUMED) | disk GB/s | bus GB/s | rans GB/s | zstd GB/s | product GB/s | µs an operation "
        "| ns a step | blocks at once |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.name} | {r.read / 1e9:.1f} | {r.copy / 1e9:.1f} | {r.rans / 1e9:.0f} | {r.zstd / 1e9:.1f} "
        f"| {r.compute / 1e9:.0f} | {r.operation_s * 1e6:.0f} | {r.step_s * 1e9:.0f} | {r.warps} |"
        for r in ASSUMED.values()
    ]
    return "\n".join(lines)


LARGEST_GROUP = max(SIZES) * DEVICE_PART_BYTES
LAUNCH_MIB = (8, 32, 128, 256)
BLOCK_KIB = (64, 16, 8)


def blocks_table() -> str:
    """What decoding all INT8 weights of a 7B takes by launches and blocks, and what blocks cost."""
    weights = sum(rows * columns for _, rows, columns in SHAPES[0].matrices())
    codes = np.random.default_rng(0).normal(0, 25, 1 << 20).clip(-127, 127).astype(np.int8).view(np.uint8)
    weights_of_bf16 = np.abs(np.random.default_rng(0).normal(0, 0.02, 1 << 20)) + 1e-9
    exponents = np.rint(np.log2(weights_of_bf16) + 127).clip(0, 255).astype(np.uint8)
    sizes = {
        kib: [len(native.rans_encode(data, kib.bit_length() + 9)) for data in (codes, exponents)]
        for kib in BLOCK_KIB
    }
    lines = [
        "| card (SIMULATED) | block | INT8 bytes | 2.5-bit bytes | "
        + " | ".join(f"{mib} MiB a launch" for mib in LAUNCH_MIB)
        + " |",
        "|---|---|---|---|" + "---|" * len(LAUNCH_MIB),
    ]
    for rates in (ASSUMED["rtx4060ti"], ASSUMED["rtx4090"], ASSUMED["h100"]):
        for kib in BLOCK_KIB:
            more = [f"+{100 * (n / usual - 1):.1f} %" for n, usual in zip(sizes[kib], sizes[64], strict=True)]
            own = replace(rates, block_bytes=kib << 10)
            times = [
                f"{1e3 * own.seconds({'rans': mib << 20}) * weights / (mib << 20):.1f} ms"
                for mib in LAUNCH_MIB
            ]
            lines.append(f"| {rates.name} | {kib} KiB | {' | '.join(more)} | {' | '.join(times)} |")
    return "\n".join(lines)


FUSED_KIB = (64, 16, 8)


def fused_table() -> str:
    """A token of a 7B that is held compressed: decoded first, or multiplied as it is decoded."""
    lines = [
        "| card (COMPUTED) | 7B | decoded | decoded first | at 31 % | "
        + " | ".join(f"fused, {kib} KiB" for kib in FUSED_KIB)
        + " | fused, 16 KiB, at 31 % |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    shape = SHAPES[0]
    others, n_products = others_s(shape), len(list(shape.matrices()))
    launches = n_products * LAUNCH_S
    for rates in (ASSUMED["rtx4060"], ASSUMED["rtx4060ti"], ASSUMED["rtx4090"], ASSUMED["h100"]):
        slow = replace(rates, rans=rates.rans * NVCOMP_ANS_SHARE / ANS_SHARE)
        for codes in CODES:
            n_weights = sum(rows * columns for _, rows, columns in shape.matrices())
            decoded, stored = (n_weights * bits / 8 for bits in (codes.bits, codes.stored_bits))
            coded = decoded - n_weights if codes.dtype == "bf16" else decoded
            stays, reads = decoded / rates.compute, stored / rates.compute
            n_groups = -(-decoded // LARGEST_GROUP)
            times = [max(stays, others + launches + LAUNCH_S)]
            for own in (rates, slow):
                decode = coded / own.rans + n_groups * own.operation_s
                host = others + launches + LAUNCH_S + 2 * n_groups * LAUNCH_S
                times.append(max(decode, stays, 2 * stays + reads, host))
            host = others + 2 * n_products * STRAIGHT_LAUNCH_S + LAUNCH_S
            times += [
                max(_fused_s(shape, codes, replace(own, block_bytes=kib << 10)), host)
                for own, kib in (*((rates, kib) for kib in FUSED_KIB), (slow, 16))
            ]
            shown = " | ".join(f"{1e3 * seconds:.1f} ms" for seconds in times)
            lines.append(f"| {rates.name} | {codes.name}, {codes.stored_bits} | {shown} |")
    return "\n".join(lines)


def _fused_s(shape: Shape, codes: Codes, rates: DeviceRates) -> float:
    """Products straight from blocks one after the other, none faster than what is stored can be read."""
    found = 0.0
    for name, rows, columns in shape.matrices():
        amounts = fused_amounts(
            record(name, rows, columns, codes, compressed=True), rows * columns * codes.bits // 8
        )
        read = rows * columns * codes.stored_bits / 8 / rates.compute
        found += max(rates.seconds(amounts), read + rates.operation_s)
    return found


def graphs_table() -> str:
    """A token of a 7B that is held decoded, as it is and as a graph."""
    lines = [
        "| card (COMPUTED) | 7B, decoded | host ms | device ms | tokens/s | host ms, a graph | device ms | tokens/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    shape = SHAPES[0]
    n_products = len(list(shape.matrices())) + 1
    n_others = OTHERS_A_LAYER * shape.n_layers + OTHERS
    host = others_s(shape) + n_products * LAUNCH_S + BESIDES * TORCH_S
    graph = GRAPH_S + IN_A_GRAPH * NODE_S + GRAPH_CALL_S + BESIDES * TORCH_S
    n_weights = sum(rows * columns for _, rows, columns in shape.matrices())
    for rates in (ASSUMED["rtx4060ti"], ASSUMED["rtx4090"], ASSUMED["a100"], ASSUMED["h100"]):
        for codes in (CODES[0], CODES[2]):
            products = n_weights * codes.bits / 8 / rates.compute
            shown = []
            for of_host, n in ((host, n_products + n_others), (graph, IN_A_GRAPH)):
                device = products + n * ON_DEVICE_S
                shown += [f"{1e3 * of_host:.1f}", f"{1e3 * device:.1f}", f"{1 / max(device, of_host):.0f}"]
            lines.append(f"| {rates.name} | {codes.name} | {' | '.join(shown)} |")
    return "\n".join(lines)
