"""From a file and a transformers class to a plan for a device, and to the engine that computes there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from spqfmt.container.reader import Reader
from spqfmt.kernels import backend
from spqfmt.kernels.device.choose import kernels_for
from spqfmt.kernels.nvcomp import NvcompZstd
from spqfmt.loaders.device.compute import device_workspace_bytes
from spqfmt.loaders.device.cuda import CudaDevice, require_cuda
from spqfmt.loaders.device.decoder import Decoder
from spqfmt.loaders.device.engine import DeviceWeights
from spqfmt.loaders.device.seam import Device
from spqfmt.loaders.device.shipping import Shipment
from spqfmt.loaders.device.sides import device_side_bytes
from spqfmt.loaders.packed.install import Packable, inventory_of, replace
from spqfmt.loaders.packed.options import check_dtype
from spqfmt.models.places import Place, find_places
from spqfmt.records import TensorRecord
from spqfmt.residency.device import DeviceInventory, plan_device
from spqfmt.residency.device_rates import DEFAULT, DeviceRates
from spqfmt.residency.inventory import Inventory, Item
from spqfmt.residency.parts import cut
from spqfmt.residency.plan import Plan
from spqfmt.residency.sides import side_bytes
from spqfmt.residency.workspace import workspace_bytes

PART_BYTES = 8 << 20
"""Decoded bytes from which on a part is closed: launches cost about as much as copying a tenth of it."""


@dataclass(frozen=True)
class DevicePrepared:
    """A model that is planned for a device and of which no weights were read."""

    places: tuple[Place, ...]
    inventory: DeviceInventory
    plan: Plan


@dataclass(frozen=True)
class Ceilings:
    """What a plan for a device is made with. `part_bytes`: decoded bytes from which on a part is closed."""

    memory_bytes: int | None = None
    host_memory_bytes: int | None = None
    rates: DeviceRates = DEFAULT
    zstd_on_device: bool = False
    part_bytes: int = PART_BYTES


def prepare_for_device(
    model_class: Any, config: Any, readers: Sequence[Reader], dtype: torch.dtype, ceilings: Ceilings
) -> DevicePrepared:
    """Plan from the index and an empty model. Raises MemoryBudgetError before any weight is read, OptionError."""
    check_dtype(dtype)
    with torch.device("meta"):
        skeleton = model_class(config)
    packable = Packable.of(readers)
    places = find_places(skeleton, packable.records)
    replace(skeleton, places, dtype, int8_activations=None)
    items = inventory_of(skeleton, places, packable, dtype).items
    ordered = {item.part.record.name: item.part.record for item in items}
    products = {place.record.name for place in places if not place.is_embedding}
    lookups = {place.record.name for place in places if place.is_embedding}
    inventory = device_inventory(
        [record for name, record in ordered.items() if name in products],
        [record for name, record in ordered.items() if name in lookups],
        packable.reader_numbers,
        sum(parameter.numel() * dtype.itemsize for parameter in skeleton.parameters()),
        dtype,
        ceilings,
    )
    plan = plan_device(inventory, ceilings.rates, ceilings.memory_bytes, ceilings.host_memory_bytes)
    return DevicePrepared(tuple(places), inventory, plan)


def device_inventory(
    products: Sequence[TensorRecord],
    lookups: Sequence[TensorRecord],
    reader_numbers: Mapping[str, int],
    float_bytes: int,
    dtype: torch.dtype,
    ceilings: Ceilings,
) -> DeviceInventory:
    """Matrices to multiply with on the device, and matrices to look up rows of on the host, in the order of use."""
    items = tuple(
        Item(
            part,
            products=True,
            lookups=False,
            load=Shipment(part, zstd_on_device=ceilings.zstd_on_device).load,
        )
        for record in products
        for part in cut(record, reader_numbers[record.name], ceilings.part_bytes)
    )
    rows = tuple(
        Item(part, products=False, lookups=True)
        for record in lookups
        for part in cut(record, reader_numbers[record.name])
    )
    return DeviceInventory(
        items,
        float_bytes,
        sum(device_side_bytes(record) for record in products),
        max((device_workspace_bytes(record, dtype) for record in products), default=0),
        Inventory(
            rows,
            0,
            side_bytes([item.part for item in rows]),
            max((workspace_bytes(*record.matrix_shape, dtype.itemsize) for record in lookups), default=0),
        ),
    )


def make_device_engine(
    prepared: DevicePrepared, readers: Sequence[Reader], dtype: torch.dtype, device: Device, decoder: Decoder
) -> DeviceWeights:
    """Read the weights that the plan keeps in memory. The engine owns readers and device."""
    return DeviceWeights(
        prepared.plan,
        readers,
        dtype,
        device,
        decoder,
        prepared.inventory.workspace_bytes,
        prepared.inventory.lookups.workspace_bytes,
    )


def open_device(device: str | torch.device | Device, *, packed: bool) -> Device | None:
    """The device for packed weights; None on the CPU, and where weights shall be ordinary parameters.

    Raises BackendError for a CUDA device that cannot be used, for packed weights or not.
    """
    if isinstance(device, Device):
        return device
    device = torch.device(device)
    if device.type != "cuda":
        return None
    require_cuda(device)
    return CudaDevice(device) if packed else None


def open_decoder(device: Device) -> Decoder:
    """The kernels that SPQFMT_BACKEND names, or the best for the device. Raises BackendError."""
    zstd = NvcompZstd(device.torch_device) if backend.current().device_zstd else None
    return Decoder(kernels_for(device.torch_device), zstd)


def ceilings_for(
    device: Device, decoder: Decoder, memory_bytes: int | None, host_memory_bytes: int | None
) -> Ceilings:
    """What a plan for this device is made with."""
    return Ceilings(memory_bytes, host_memory_bytes, device.rates, decoder.zstd is not None, PART_BYTES)
