"""Which modules of a transformers model can compute from packed weights, and their replacement."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from spqfmt.container.reader import Reader
from spqfmt.loaders.packed.modules import PackedEmbedding, PackedLinear
from spqfmt.pipeline.residency.inventory import Inventory, Item
from spqfmt.pipeline.residency.parts import PART_BYTES, cut
from spqfmt.pipeline.residency.sides import side_bytes
from spqfmt.pipeline.residency.workspace import workspace_bytes
from spqfmt.records import TensorRecord

_FLOATS = frozenset({"f64", "f32", "f16", "bf16"})


@dataclass(frozen=True)
class Packable:
    """The tensors of a file by name, tied names included, each with the record that holds its values."""

    records: Mapping[str, TensorRecord]
    reader_numbers: Mapping[str, int]
    """By the holding record's name."""

    @classmethod
    def of(cls, readers: Sequence[Reader]) -> "Packable":
        """Of all files of a model."""
        records, numbers = {}, {}
        for number, reader in enumerate(readers):
            for record in reader.index.tensors:
                holder = record if record.tied_to is None else reader.index.by_name[record.tied_to]
                records[record.name] = holder
                numbers[holder.name] = number
        return cls(records, numbers)


@dataclass(frozen=True)
class Place:
    """A module that can be replaced: its name in the model, its tensor's in the file, and what holds the values."""

    module: str
    tensor: str
    record: TensorRecord
    is_embedding: bool


def find_places(model: Any, packable: Packable) -> list[Place]:
    """Plain linear layers (also GPT-2's) and embeddings whose weight the file holds in a fitting form.

    Others, among them experts that transformers merges, and modules that a model wants in float32, stay as they are.
    """
    kept = [*(model._keep_in_fp32_modules or ()), *(model._keep_in_fp32_modules_strict or ())]
    tied: Mapping[str, str] = model.all_tied_weights_keys
    places = []
    for name, module in model.named_modules():
        if any(part in kept for part in name.split(".")):
            continue
        weight = f"{name}.weight"
        for candidate in _names(weight, tied.get(weight), model.base_model_prefix):
            record = packable.records.get(candidate)
            if record is not None and _fits(module, record):
                places.append(Place(name, candidate, record, isinstance(module, nn.Embedding)))
                break
    return _whole_ties(places, tied)


def _whole_ties(places: list[Place], tied: Mapping[str, str]) -> list[Place]:
    """Without those that share a tensor with a module that keeps an ordinary parameter: it would be held twice."""
    found = {f"{place.module}.weight" for place in places}
    broken = {name for pair in tied.items() if not found.issuperset(pair) for name in pair}
    return [place for place in places if f"{place.module}.weight" not in broken]


def _names(weight: str, source: str | None, prefix: str) -> list[str]:
    names = [weight] if source is None else [weight, source]
    head = f"{prefix}."
    return [*names, *(n.removeprefix(head) if n.startswith(head) else head + n for n in names if prefix)]


def _fits(module: Any, record: TensorRecord) -> bool:
    if record.dtype not in _FLOATS or len(record.shape) != 2 or 0 in record.shape:
        return False
    if type(module) is nn.Linear:
        return record.shape == tuple(module.weight.shape) and not record.transposed
    if type(module) is nn.Embedding:
        plain = module.max_norm is None and not module.scale_grad_by_freq and not module.sparse
        return (
            plain and not record.transposed and record.shape == (module.num_embeddings, module.embedding_dim)
        )
    if type(module) is Conv1D:
        rows, columns = record.matrix_shape
        return record.transposed and (module.nf, module.nx) == (rows, columns)
    return False


def replace(
    model: Any, places: Sequence[Place], dtype: torch.dtype, *, int8_activations: bool | None
) -> None:
    """Put packed modules into their places. `int8_activations` None is what each record says."""
    for place in places:
        old = model.get_submodule(place.module)
        if place.is_embedding:
            new: nn.Module = PackedEmbedding(place.record, dtype, old.padding_idx)
        else:
            wanted = place.record.activation_quantization is not None
            new = PackedLinear(
                place.record,
                dtype,
                old.bias,
                int8_activations=wanted if int8_activations is None else int8_activations,
            )
        parent, _, own = place.module.rpartition(".")
        setattr(model.get_submodule(parent), own, new)
    replaced = {f"{place.module}.weight" for place in places}
    # What has no parameter cannot be tied; both sides compute from the same record.
    model.all_tied_weights_keys = {
        a: b for a, b in model.all_tied_weights_keys.items() if a not in replaced and b not in replaced
    }


def inventory_of(
    model: Any, places: Sequence[Place], packable: Packable, dtype: torch.dtype, part_bytes: int = PART_BYTES
) -> Inventory:
    """What a model with its `places` replaced will hold, in the order of the file, with a tied head last."""
    products = {place.record.name for place in places if not place.is_embedding}
    lookups = {place.record.name for place in places if place.is_embedding}
    records = {place.record.name: place.record for place in places}
    order = {name: i for i, name in enumerate(packable.records)}
    both = products & lookups
    items = [
        Item(part, name in products, name in lookups)
        for name in sorted(records, key=lambda name: (name in both, order[name]))
        for part in cut(records[name], packable.reader_numbers[name], part_bytes)
    ]
    return Inventory(
        tuple(items),
        sum(parameter.numel() * dtype.itemsize for parameter in model.parameters()),
        side_bytes([item.part for item in items]),
        max(
            (workspace_bytes(*record.matrix_shape, dtype.itemsize) for record in records.values()), default=0
        ),
    )
