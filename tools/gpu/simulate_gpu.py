"""Predict tokens a second on cards that are not there: the loader's own plan and pipeline under a virtual clock.

    python tools/gpu/simulate_gpu.py [--write | --check]

Prints the tables of gpu_tables.py (the rates that are assumed; what decoding takes by the size of launches and of
blocks, and what products straight from blocks do), and what the pipeline (spqfmt.loaders.device) does for models of
7 and 13 billion weights and a mixture of experts on cards of 8 to 80 GB. --write puts them into docs/gpu.md, --check
says whether they stand there. Nothing is measured: every number is computed from the rates. Charged are the steps of
a block, which wait for each other, launches, and the time that they take the host, the model's other operations among
them; not the device's time for those (attention, norms).
"""

import argparse
import sys
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import chain, groupby
from pathlib import Path

import numpy as np
import torch
from gpu_shapes import CODES, SHAPES, Codes, Shape, record
from gpu_tables import (
    LAUNCH_S,
    STRAIGHT_LAUNCH_S,
    blocks_table,
    fused_table,
    graphs_table,
    others_s,
    rates_table,
)

from spqfmt import wire
from spqfmt.container.reader import Reader
from spqfmt.errors import MemoryBudgetError
from spqfmt.kernels.choose import kernels_for
from spqfmt.loaders.device import SimulatedDevice
from spqfmt.loaders.device.decoder import Decoder
from spqfmt.loaders.device.fused import fused_amounts
from spqfmt.loaders.device.group_shipping import GroupShipment
from spqfmt.loaders.device.pieces import WeightPiece
from spqfmt.loaders.device.pipeline import Pipeline
from spqfmt.loaders.device.seam import Memory, Queue, Work
from spqfmt.loaders.load import Ceilings, device_inventory
from spqfmt.residency.device import plan_device
from spqfmt.residency.device_rates import ASSUMED, DeviceRates
from spqfmt.residency.device_stages import is_fused
from spqfmt.residency.groups import aligned
from spqfmt.residency.plan import Plan, PlannedPart

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "gpu.md"
RUNTIME_BYTES = 3 << 28
"""Kept free for the CUDA context, kernels and activations."""
GIB = 1 << 30
WARM_PASSES, PASSES = 1, 2
BLOCK_BYTES = 1 << 14
"""Blocks of files that were packed `--for gpu` have this size."""
CARDS = tuple(
    (card, replace(ASSUMED[name], block_bytes=BLOCK_BYTES), memory * GIB)
    for card, name, memory in (
        ("8 GB", "rtx4060", 8),
        ("16 GB", "rtx4060ti", 16),
        ("24 GB", "rtx4090", 24),
        ("80 GB", "h100", 80),
    )
)
HOST = 32 * GIB
SMALL_HOST = 4 * GIB


def plan(shape: Shape, codes: Codes, rates: DeviceRates, memory: int, host: int, *, compressed: bool) -> Plan:
    """Make the plan as the loader makes it."""
    products = [record(*matrix, codes, compressed=compressed) for matrix in shape.matrices()]
    lookups = [record("embedding", shape.vocabulary, shape.hidden, CODES[0], compressed=compressed)]
    numbers = dict.fromkeys([r.name for r in (*products, *lookups)], 0)
    norms = 2 * (2 * shape.n_layers + 1) * shape.hidden
    ceilings = Ceilings(memory - RUNTIME_BYTES - shape.cache_bytes, host, rates)
    inventory = device_inventory(
        products,
        lookups,
        numbers,
        float_bytes=norms,
        dtype=torch.bfloat16,
        ceilings=ceilings,
        shares=shape.shares(),
    )
    return plan_device(inventory, rates, ceilings.memory_bytes, ceilings.host_memory_bytes)


def compressed_alone(plan: Plan) -> Plan:
    """The same groups, but all products' compressed on the device: what decoding costs when nothing is spared."""
    parts: list[PlannedPart] = []
    for group in plan.on_host.groups:
        own = plan.parts[group.first : group.stop]
        if any(part.item.lookups for part in own):
            parts += own
            continue
        fused = is_fused([part.item for part in own], "compressed", plan.on_host.rates)
        for part in own:
            n_bytes = aligned(part.item.sending.sent_bytes)
            parts.append(replace(part, residency="compressed", bytes=n_bytes, fused=fused))
    return replace(plan, parts=tuple(parts))


@dataclass(frozen=True)
class Predicted:
    """One token: seconds, what is busy the longest (a queue, the host, memory), and what the host takes to give it all.

    `group_bytes`: decoded bytes of the largest group; `warps`: blocks, a warp each, in the largest launch.
    """

    seconds: float
    busiest: str
    host_seconds: float
    group_bytes: int
    warps: int


class _Token:
    """What a token is multiplied with, in order: experts as they are chosen, others each time."""

    def __init__(
        self,
        pipeline: Pipeline,
        device: SimulatedDevice,
        pieces: Sequence[WeightPiece],
        shape: Shape,
        fused: Set[int],
    ) -> None:
        self._pipeline, self._device, self._shape, self._fused = pipeline, device, shape, fused
        self._random = np.random.default_rng(0)
        shares = shape.shares()

        def layer(piece: WeightPiece) -> int | None:
            _, expert = shares.get(piece.record.name, (None, None))
            return None if expert is None else expert.place

        self._steps = [(place, list(run)) for place, run in groupby(pieces, layer)]
        self._experts = {name: expert for name, (_, expert) in shares.items()}

    def run(self) -> None:
        """Give it all to the device."""
        for place, pieces in self._steps:
            chosen = pieces
            if place is not None:
                numbers = set(self._random.permutation(self._shape.experts)[: self._shape.active].tolist())
                chosen = [p for p in pieces if (e := self._experts[p.record.name]) and e.number in numbers]
                # The host waits for what the router says.
                self._device.synchronize(self._device.record(Queue.COMPUTE))
                groups = dict.fromkeys(piece.group for piece in chosen)
                self._pipeline.ask([group for group in groups if group not in self._fused])
            for piece in chosen:
                reads: tuple[Memory, ...] = ()
                amounts = fused_amounts(piece.record, piece.decoded_bytes)
                if piece.group not in self._fused:
                    reads, amounts = (self._pipeline.hold(piece.group),), {"compute": piece.decoded_bytes}
                self._device.enqueue(Queue.COMPUTE, Work(piece.name, reads, (), amounts), lambda: None)


def predict(plan: Plan, shape: Shape) -> Predicted:
    """What the pipeline makes of a plan in its steady state, and the host beside it."""
    rates = plan.on_host.rates
    device = SimulatedDevice(rates, capacity_bytes=plan.held_bytes, runs=False)
    parts = [part.item.part for part in plan.parts]
    groups = plan.on_host.groups
    shipments = [GroupShipment.of(parts[g.first : g.stop], zstd_on_device=False) for g in groups]
    readers: list[Reader] = [_NoReader()]
    decoder = Decoder(kernels_for(torch.device("cpu"), "torch"))
    pipeline = Pipeline(device=device, plan=plan, shipments=shipments, readers=readers, decoder=decoder)
    pipeline.load()
    pieces = [
        piece
        for piece in chain.from_iterable(pipeline.pieces.values())
        if not piece.name.startswith("embedding")
    ]
    fused = {n for n, group in enumerate(groups) if plan.parts[group.first].fused}
    token = _Token(pipeline, device, pieces, shape, fused=fused)
    ends = []
    for _ in range(WARM_PASSES + PASSES):
        token.run()
        ends.append(next(done.stop for done in reversed(device.trace) if done.stream is Queue.COMPUTE))
    begin = ends[WARM_PASSES - 1]
    busy = dict.fromkeys((queue.value for queue in Queue), 0.0)
    for done in device.trace:
        if done.start >= begin:
            busy[done.stream.value] += (done.stop - done.start) / PASSES
    streamed = [
        n
        for n, group in enumerate(groups)
        if plan.parts[group.first].residency != "decoded" and n not in fused
    ]
    shares = {n: plan.parts[group.first].item.share or 1.0 for n, group in enumerate(groups)}
    read = [piece for piece in pieces if piece.group not in fused]
    launches = sum(shares[piece.group] for piece in read)
    launches += sum(shares[n] * _launches(shipments[n]) for n in streamed)
    straight = [piece for piece in pieces if piece.group in fused]
    n_straight = sum(2 * shares[piece.group] for piece in straight)
    host = launches * LAUNCH_S + n_straight * STRAIGHT_LAUNCH_S + others_s(shape)
    busy["host"] = host
    n_bytes = _memory_bytes(shipments, streamed, read, plan, shares=shares)
    n_bytes += sum(shares[n] * shipments[n].payload_bytes for n in fused)
    busy["memory"] = n_bytes / rates.compute
    decoded = [shipments[n].decode_amounts.get("rans", 0) for n in streamed]
    decoded += [_symbols(piece) for piece in straight]
    return Predicted(
        seconds=max((ends[-1] - begin) / PASSES, host, busy["memory"]),
        busiest=max(busy, key=lambda name: busy[name]),
        host_seconds=host,
        group_bytes=max((groups[n].decoded_bytes for n in streamed), default=0),
        warps=max(decoded, default=0) // rates.block_bytes,
    )


def _symbols(piece: WeightPiece) -> int:
    """Symbols in the blocks of a piece: the highest byte of each element, or its codes."""
    return piece.decoded_bytes // max(1, wire.DTYPES[piece.dtype].bits // 8)


def _memory_bytes(
    shipments: Sequence[GroupShipment],
    streamed: Sequence[int],
    pieces: Sequence[WeightPiece],
    plan: Plan,
    shares: Mapping[int, float],
) -> float:
    """What a token moves in the device's memory: all queues share it, each of which is charged for its own alone."""
    n_bytes = sum(shares[piece.group] * piece.decoded_bytes for piece in pieces)
    for number in streamed:
        own, crosses_bus = (
            shipments[number],
            plan.parts[plan.on_host.groups[number].first].residency != "compressed",
        )
        # Read where they are compressed, and written there if they come from the host; written decoded; and planes that
        # are put together from scratch memory are written and read once more.
        moved = own.payload_bytes * (2 if crosses_bus else 1) + own.decoded_bytes + 2 * own.scratch_bytes
        n_bytes += shares[number] * moved
    return n_bytes


def _launches(shipment: GroupShipment) -> int:
    """What decoding a group launches: tables and blocks, or what copies those that are stored as they are."""
    codecs = {codec for own in shipment.shipments for codec in own.jobs[:, 2].tolist()}
    return 2 if wire.CODEC_RANS in codecs else 1


class _NoReader(Reader):
    """The file that there is not: a simulation that only counts time never reads."""

    def __init__(self) -> None:
        self.path = Path("simulated.spq")


def simulated_table() -> str:
    """What the pipeline makes of them."""
    lines = [
        "| card (SIMULATED) | model | codes, bits stored | host ceiling | decoded | compressed | fused | in host "
        "| on disk | MiB a group | warps | host ms | busiest | tokens/s | raw codes |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for card, rates, memory in CARDS:
        for shape in SHAPES:
            chosen = (CODES[0], *CODES[2:]) if shape.experts else CODES
            lines += [_row(card, rates, memory, shape=shape, codes=codes, host=HOST) for codes in chosen]
    card, rates, memory = CARDS[0]
    lines += [_row(card, rates, memory, shape=SHAPES[1], codes=codes, host=SMALL_HOST) for codes in CODES]
    return "\n".join(lines)


def _row(card: str, rates: DeviceRates, memory: int, shape: Shape, codes: Codes, host: int) -> str:
    head = f"| {card}, {rates.name} | {shape.name} | {codes.name}, {codes.stored_bits} | {host // GIB} GiB "
    try:
        planned = plan(shape, codes, rates, memory=memory, host=host, compressed=True)
    except MemoryBudgetError:
        return head + "| does not fit |" + " |" * 10
    found = predict(planned, shape)
    raw_seconds = found.seconds
    if planned.is_streamed:
        raw = plan(shape, codes, rates, memory=memory, host=host, compressed=False)
        raw_seconds = predict(raw, shape).seconds
    on_disk = sum(p.item.part.stored_bytes for p in planned.parts if p.residency == "disk")
    places = [planned.bytes_in(where) for where in ("decoded", "compressed")]
    places += [planned.fused_bytes, planned.bytes_in("host"), on_disk]
    shown = " | ".join(f"{n_bytes / GIB:.1f}" for n_bytes in places)
    return (
        f"{head}| {shown} | {found.group_bytes >> 20 or '-'} | {found.warps or '-'} | {1e3 * found.host_seconds:.1f} "
        f"| {found.busiest} | {1 / found.seconds:.1f} | {1 / raw_seconds:.1f} |"
    )


def _tables() -> dict[str, str]:
    """All of them, by the names of their places in the document."""
    return {
        "rates": rates_table(),
        "blocks": blocks_table(),
        "fused": fused_table(),
        "graphs": graphs_table(),
        "simulated": simulated_table(),
    }


def filled(text: str) -> str:
    """The document with its tables as they are now."""
    for name, table in _tables().items():
        head, begin, rest = text.partition(f"<!-- table: {name} -->\n")
        _, end, tail = rest.partition("<!-- end -->")
        text = f"{head}{begin}{table}\n{end}{tail}"
    return text


def main() -> int:
    """Run the tool, whose help is the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    if not arguments.write and not arguments.check:
        print("\n\n".join(_tables().values()))
        return 0
    text = DOCUMENT.read_text(encoding="utf-8")
    made = filled(text)
    if arguments.write:
        DOCUMENT.write_text(made, encoding="utf-8")
    elif made != text:
        print(f"stale: {DOCUMENT.name}; run python tools/gpu/simulate_gpu.py --write", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
