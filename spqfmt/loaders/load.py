"""From a file and a transformers class to a model that computes from packed weights, on the CPU or on a device.

The road is one. What differs is what plans (`on_host`, `on_device`), and what then holds the weights (HostWeights,
DeviceWeights).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from spqfmt.container.reader import Reader
from spqfmt.kernels import backend
from spqfmt.kernels.choose import kernels_for
from spqfmt.kernels.cuda_device import require_cuda
from spqfmt.kernels.device.fusing import FUSED_FLOATS
from spqfmt.kernels.nvcomp import NvcompZstd
from spqfmt.loaders.device.compute import device_workspace_bytes
from spqfmt.loaders.device.cuda import CudaDevice
from spqfmt.loaders.device.decoder import Decoder
from spqfmt.loaders.device.engine import DeviceWeights
from spqfmt.loaders.device.fused import takes_inputs
from spqfmt.loaders.device.seam import Device
from spqfmt.loaders.device.shipping import Shipment
from spqfmt.loaders.device.sides import change_bytes, device_side_bytes
from spqfmt.loaders.packed.compiled import number_of
from spqfmt.loaders.packed.engine import HostWeights
from spqfmt.loaders.packed.fused import fuse
from spqfmt.loaders.packed.install import Packable, inventory_of, replace, replace_experts
from spqfmt.loaders.packed.modules import Packed
from spqfmt.loaders.packed.options import Packing, check_dtype
from spqfmt.loaders.packed.saving import LoadedFrom
from spqfmt.loaders.packed.shares import n_float_numbers, share_places
from spqfmt.loaders.packed.weights import Weights
from spqfmt.loaders.packed.whole import loaded_class
from spqfmt.loaders.ranks import ALONE, Ranks, check_plan
from spqfmt.loaders.schemes.registry import has_device_form
from spqfmt.models.claims import earned
from spqfmt.models.experts import ExpertsPlace, FoundExperts, find_experts, tensors_of
from spqfmt.models.own_code import own_code
from spqfmt.models.places import Place, find_places, values_at_once
from spqfmt.records import TensorRecord
from spqfmt.residency.blocks import with_blocks_of
from spqfmt.residency.cpu import plan_residency
from spqfmt.residency.device import DeviceInventory, plan_device
from spqfmt.residency.device_rates import DEFAULT, DeviceRates
from spqfmt.residency.inventory import Expert, Inventory, Item, Load
from spqfmt.residency.parts import Part, cut
from spqfmt.residency.plan import Plan
from spqfmt.residency.rates import Rates
from spqfmt.residency.sides import side_bytes
from spqfmt.residency.workspace import workspace_bytes
from spqfmt.schemes.registry import whole_because

DEVICE_PART_BYTES = 8 << 20
"""Decoded bytes from which on a part is closed; what goes to a device together is a number of them."""


@dataclass(frozen=True)
class Planner:
    """`plan` takes what a model holds and what it computes in; it raises MemoryBudgetError.

    `computes`: whether a tensor's scheme has products there; others are decoded whole.
    """

    plan: Callable[[Inventory, torch.dtype], Plan]
    computes: Callable[[TensorRecord], bool] = lambda _: True
    takes_expert: Callable[[TensorRecord], bool] = lambda _: False
    """Whether an expert with such a matrix is computed alone there; else all of a layer are decoded whole."""


@dataclass(frozen=True)
class Prepared:
    """A model that is planned and of which no weights were read.

    `changed`: layers that stay as they are since their class changes them. `whole`: by name, why tensors are decoded
    whole that would be packed in another form.
    """

    places: tuple[Place, ...]
    experts: tuple[ExpertsPlace, ...]
    inventory: Inventory
    plan: Plan
    changed: tuple[str, ...]
    whole: Mapping[str, str]


def prepare(
    model_class: Any,
    config: Any,
    readers: Sequence[Reader],
    dtype: torch.dtype,
    planner: Planner,
    ranks: Ranks = ALONE,
) -> Prepared:
    """Plan from the index and an empty model. Raises MemoryBudgetError before any weight is read, OptionError.

    CorruptError for a config that asks for more than the file holds, UnsupportedError for ranks that cannot share it.
    """
    check_dtype(dtype)
    packable = Packable.of(readers)
    shapes = (record.shape for record in packable.records.values())
    with torch.device("meta"), earned(readers[0].path, shapes):
        skeleton = model_class(config)
    computed = {name: record for name, record in packable.records.items() if planner.computes(record)}
    places = find_places(skeleton, computed)
    values_bytes = values_at_once(skeleton, places) * dtype.itemsize
    changed = tuple(sorted(own_code(skeleton).changed))
    experts = find_experts(skeleton, computed)
    whole, n_floats = {}, None
    if ranks.size > 1:
        check_plan(readers[0].path, skeleton, ranks)
        # Of rows that lie apart no rank has a part: they are decoded whole.
        places = [place for place in places if place.heads is None]
        shared = share_places(skeleton, places, ranks.rank, ranks.size)
        places, whole = shared.places, dict(shared.whole)
    takes = planner.takes_expert if ranks.size == 1 else lambda _: False
    taken = tuple(place for place in experts.places if all(map(takes, place.records)))
    why = "experts stored by their inputs, on a device" if ranks.size == 1 else "experts, of several ranks"
    left = tensors_of(experts.places) - tensors_of(taken)
    experts = FoundExperts(taken, {**experts.whole, **dict.fromkeys(left, why)})
    replace(skeleton, places, dtype, int8_activations=None)
    replace_experts(skeleton, experts.places, dtype)
    if ranks.size > 1:
        n_floats = n_float_numbers(skeleton, ranks.size)
    inventory = inventory_of(
        skeleton,
        places,
        packable,
        dtype,
        experts=experts.places,
        values_bytes=values_bytes,
        n_floats=n_floats,
    )
    whole |= {name: why for name, record in packable.records.items() if (why := whole_because(record))}
    whole |= experts.whole
    return Prepared(
        places=tuple(places),
        experts=experts.places,
        inventory=inventory,
        plan=planner.plan(inventory, dtype),
        changed=changed,
        whole=whole,
    )


def on_host(memory_bytes: int | None, rates: Rates) -> Planner:
    """Plans for the CPU, under one ceiling; None for none."""
    return Planner(
        lambda inventory, _: plan_residency(inventory, rates, memory_bytes), takes_expert=lambda _: True
    )


@dataclass(frozen=True)
class Ceilings:
    """What a plan for a device is made with. `part_bytes`: decoded bytes from which on a part is closed."""

    memory_bytes: int | None = None
    host_memory_bytes: int | None = None
    rates: DeviceRates = DEFAULT
    zstd_on_device: bool = False
    part_bytes: int = DEVICE_PART_BYTES


def on_device(ceilings: Ceilings) -> Planner:
    """Plans for a device, under two ceilings."""

    def plan(inventory: Inventory, dtype: torch.dtype) -> Plan:
        items = {item.part.record.name: item for item in _by_experts(inventory.items)}
        there = device_inventory(
            [item.part.record for item in items.values() if item.products],
            [item.part.record for item in items.values() if item.lookups],
            {name: item.part.reader_number for name, item in items.items()},
            float_bytes=inventory.float_bytes,
            dtype=dtype,
            ceilings=ceilings,
            shares={name: (item.share, item.expert) for name, item in items.items()},
        )
        there = dataclasses.replace(there, values_bytes=inventory.values_bytes)
        return plan_device(there, ceilings.rates, ceilings.memory_bytes, ceilings.host_memory_bytes)

    return Planner(plan, has_device_form, takes_expert=lambda record: not getattr(record, "turned", False))


def _by_experts(items: Sequence[Item]) -> list[Item]:
    """The same, what each expert has side by side, where the first of its layer is."""
    begins: dict[int, int] = {}
    for number, item in enumerate(items):
        if item.expert is not None:
            begins.setdefault(item.expert.place, number)

    def place(numbered: tuple[int, Item]) -> tuple[int, int]:
        number, item = numbered
        return (number, 0) if item.expert is None else (begins[item.expert.place], item.expert.number)

    return [item for _, item in sorted(enumerate(items), key=place)]


def device_inventory(
    products: Sequence[TensorRecord],
    lookups: Sequence[TensorRecord],
    reader_numbers: Mapping[str, int],
    float_bytes: int,
    dtype: torch.dtype,
    ceilings: Ceilings,
    shares: Mapping[str, tuple[float | None, Expert | None]] = MappingProxyType({}),
) -> DeviceInventory:
    """Matrices to multiply with on the device, and matrices to look up rows of on the host, in the order of use.

    `shares`: by name, what Item says of experts.
    """
    names = {record.name for record in products}
    looked_up = {record.name for record in lookups}

    def load_of(part: Part) -> Load:
        load = Shipment(part, zstd_on_device=ceilings.zstd_on_device).load
        return load if takes_inputs(part.record, dtype) else load._replace(fused=None)

    def there(records: Sequence[TensorRecord]) -> tuple[Item, ...]:
        return tuple(
            Item(
                part,
                products=record.name in names,
                lookups=record.name in looked_up,
                load=load_of(part),
                share=shares.get(record.name, (None, None))[0],
                expert=shares.get(record.name, (None, None))[1],
            )
            for record in records
            for part in cut(record, reader_numbers[record.name], ceilings.part_bytes)
        )

    alone = [record for record in lookups if record.name not in names and has_device_form(record)]
    rows = tuple(
        Item(part, products=False, lookups=True)
        for record in lookups
        for part in cut(record, reader_numbers[record.name])
    )
    return DeviceInventory(
        items=there(products),
        float_bytes=float_bytes,
        side_bytes=sum(device_side_bytes(record) for record in products),
        workspace_bytes=max((device_workspace_bytes(record, dtype) for record in products), default=0),
        lookups=Inventory(
            rows,
            0,
            side_bytes([item.part for item in rows]),
            max((workspace_bytes(*record.matrix_shape, dtype.itemsize) for record in lookups), default=0),
        ),
        rows=there(alone),
        row_side_bytes=sum(device_side_bytes(record) for record in alone),
        part_bytes=ceilings.part_bytes,
        change_bytes=sum(map(change_bytes, products)) if dtype in FUSED_FLOATS else 0,
    )


def device_road(
    device: Device, wanted: Packing, readers: Sequence[Reader]
) -> tuple[Planner, Callable[[Plan, Sequence[Reader], torch.dtype], Weights]]:
    """What plans for the device and what then holds the weights there; that owns the device. Raises BackendError."""
    # The kernels that SPQFMT_BACKEND names, or the best for the device.
    zstd = NvcompZstd(device.torch_device) if backend.current().device_zstd else None
    decoder = Decoder(kernels_for(device.torch_device), zstd)
    ceilings = Ceilings(
        memory_bytes=wanted.memory_bytes,
        host_memory_bytes=wanted.host_memory_bytes,
        rates=with_blocks_of(device.rates, readers),
        zstd_on_device=zstd is not None,
        part_bytes=DEVICE_PART_BYTES,
    )
    return on_device(ceilings), partial(DeviceWeights, device=device, decoder=decoder)


def open_device(device: torch.device, *, packed: bool) -> Device | None:
    """The device for packed weights; None on the CPU, and where weights shall be ordinary parameters.

    Raises BackendError for a CUDA device that cannot be used, for packed weights or not.
    """
    if device.type != "cuda":
        return None
    require_cuda(device)
    return CudaDevice(device) if packed else None


def packed_class(
    model_class: Any,
    places: Sequence[Place],
    dtype: torch.dtype,
    *,
    int8_activations: bool | None,
    experts: Sequence[ExpertsPlace] = (),
) -> Any:
    """`model_class` with packed modules from the start, so that transformers never makes room for their weights."""

    def construct(self: Any, config: Any, *arguments: Any, **options: Any) -> None:
        model_class.__init__(self, config, *arguments, **options)
        replace(self, places, dtype, int8_activations=int8_activations)
        replace_experts(self, experts, dtype)

    names = {
        "__init__": construct,
        "__module__": model_class.__module__,
        "__qualname__": model_class.__qualname__,
    }
    return type(model_class.__name__, (model_class,), names)


def attach(model: Any, model_class: Any, engine: Weights, files: Sequence[Path]) -> None:
    """Give the engine to a model of `packed_class`, loaded from `files`, which is one of its class from now on."""
    model.__class__ = loaded_class(model_class)
    model.requires_grad_(False)
    number = number_of(engine)
    has_codes = False
    for module in model.modules():
        if isinstance(module, Packed):
            module.attach(engine, number)
            has_codes |= module.record.scheme != "dense"
    # What a lossless file gives on the CPU is what its source gives, to the bit.
    if has_codes and isinstance(engine, HostWeights):
        fuse(model)
    model.packed_weights, model.packed_origin = engine, LoadedFrom(files, model)
