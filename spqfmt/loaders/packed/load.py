"""From a file and a transformers class to a model that computes from packed weights under a ceiling."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from spqfmt.container.reader import Reader
from spqfmt.loaders.packed.engine import HostWeights
from spqfmt.loaders.packed.install import Packable, inventory_of, replace
from spqfmt.loaders.packed.modules import PackedEmbedding, PackedLinear, Weights
from spqfmt.loaders.packed.options import check_dtype
from spqfmt.loaders.packed.whole import loaded_class
from spqfmt.models.places import Place, find_places
from spqfmt.residency.cpu import plan_residency
from spqfmt.residency.inventory import Inventory
from spqfmt.residency.plan import Plan
from spqfmt.residency.rates import Rates, measure_rates


@dataclass(frozen=True)
class Prepared:
    """A model that is planned and of which no weights were read."""

    places: tuple[Place, ...]
    inventory: Inventory
    plan: Plan


def prepare(
    model_class: Any,
    config: Any,
    readers: Sequence[Reader],
    *,
    dtype: torch.dtype,
    memory_bytes: int | None,
    rates: Rates | None = None,
) -> Prepared:
    """Plan from the index and an empty model. Raises MemoryBudgetError before any weight is read, OptionError."""
    check_dtype(dtype)
    with torch.device("meta"):
        skeleton = model_class(config)
    packable = Packable.of(readers)
    places = find_places(skeleton, packable.records)
    replace(skeleton, places, dtype, int8_activations=None)
    inventory = inventory_of(skeleton, places, packable, dtype)
    plan = plan_residency(inventory, rates or measure_rates(readers[0]), memory_bytes)
    return Prepared(tuple(places), inventory, plan)


def packed_names(places: Sequence[Place]) -> frozenset[str]:
    """Tensors of the file, by the names that the model's class has for them, that transformers shall not load."""
    return frozenset(place.tensor for place in places)


def packed_class(
    model_class: Any, places: Sequence[Place], dtype: torch.dtype, *, int8_activations: bool | None
) -> Any:
    """`model_class` with packed modules from the start, so that transformers never makes room for their weights."""

    def construct(self: Any, config: Any, *arguments: Any, **options: Any) -> None:
        model_class.__init__(self, config, *arguments, **options)
        replace(self, places, dtype, int8_activations=int8_activations)

    names = {
        "__init__": construct,
        "__module__": model_class.__module__,
        "__qualname__": model_class.__qualname__,
    }
    return type(model_class.__name__, (model_class,), names)


def make_engine(prepared: Prepared, readers: Sequence[Reader], dtype: torch.dtype) -> HostWeights:
    """Read the packed weights that the plan keeps in memory. The engine owns the readers."""
    return HostWeights(prepared.plan, readers, dtype, prepared.inventory.workspace_bytes)


def attach(model: Any, model_class: Any, engine: Weights) -> None:
    """Give the engine to a model of `packed_class`, which is one of its class from now on."""
    model.__class__ = loaded_class(model_class)
    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, PackedLinear | PackedEmbedding):
            module.attach(engine)
    model.packed_weights = engine
