"""Engines on simulated devices, and ceilings at which a certain residency must come out."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from spqfmt.container.reader import Reader
from spqfmt.kernels.choose import kernels_for
from spqfmt.loaders.device import DeviceWeights, Fault, SimulatedDevice
from spqfmt.loaders.device.decoder import Decoder
from spqfmt.loaders.load import Ceilings, device_inventory
from spqfmt.loaders.model import load_onto
from spqfmt.loaders.packed.options import packing_options
from spqfmt.residency.device import device_fixed_bytes, plan_device
from spqfmt.residency.device_rates import DeviceRates
from spqfmt.residency.device_stages import is_fused
from spqfmt.residency.plan import Plan

RATES = DeviceRates(
    name="test", assumed=True, read=1e8, copy=1e9, rans=1e10, zstd=5e9, move=2e10, compute=2e10,
    host_decode=1e9, operation_s=1e-9,
)  # fmt: skip


def plan_of(
    readers: Sequence[Reader], residency: str, *, part_bytes: int = 1 << 11, zstd_on_device: bool = False
) -> Plan:
    """A plan of all tensors of the files in which as many parts as possible live in `residency`."""
    records = [(record, number) for number, reader in enumerate(readers) for record in reader.index.tensors]
    numbers = {record.name: number for record, number in records}
    ceilings = Ceilings(part_bytes=part_bytes, zstd_on_device=zstd_on_device)
    products = [record for record, _ in records]
    inventory = device_inventory(products, [], numbers, 0, torch.bfloat16, ceilings)
    return forced_plan(inventory, residency)


def forced_plan(inventory: Any, residency: Any) -> Any:
    """A plan in which every part lives there."""
    whole = plan_device(inventory, RATES)
    if residency == "decoded":
        return whole
    fixed = device_fixed_bytes(inventory, whole.on_host.groups, streamed=True)
    parts = []
    for group in whole.on_host.groups:
        own = whole.parts[group.first : group.stop]
        fused = is_fused([part.item for part in own], residency, RATES)
        for part in own:
            n_bytes = 0 if residency == "disk" else -(-part.item.load.sent_bytes // 64) * 64
            parts.append(replace(part, residency=residency, bytes=n_bytes, fused=fused))
    return replace(whole, parts=tuple(parts), fixed=fixed)


def engine_of(
    path: Path, residency: str, *, faults: Sequence[Fault] = (), **options: Any
) -> tuple[DeviceWeights, SimulatedDevice]:
    """An engine over all tensors of a file, on a device that holds no byte more than the plan."""
    reader = Reader(path)
    plan = plan_of([reader], residency, **options)
    device = SimulatedDevice(RATES, capacity_bytes=plan.held_bytes, faults=faults)
    decoder = Decoder(kernels_for(torch.device("cpu"), "torch"))
    engine = DeviceWeights(plan, [reader], torch.bfloat16, device, decoder)
    assert device.allocated_bytes == engine.held_bytes == plan.held_bytes
    assert device.peak_host_bytes <= plan.host_held_bytes
    return engine, device


def loaded_onto_device(
    path: Path, memory: int | None, host_memory: int | None, **options: Any
) -> tuple[Any, SimulatedDevice]:
    """A model under two ceilings, None for none, and the simulated device that it is on."""
    device = SimulatedDevice(RATES, capacity_bytes=memory)
    wanted = packing_options(path, "cuda", memory, memory is None or None, None, host_memory)
    model, _ = load_onto(path, device.torch_device, device, wanted, **options)
    return model, device


def logits_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Of all tokens, without gradients."""
    with torch.inference_mode():
        found: torch.Tensor = model(ids).logits
    return found
