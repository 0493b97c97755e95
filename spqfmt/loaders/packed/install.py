"""Packed modules in the places of a model that can have them, and what it then holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from spqfmt.container.reader import Reader
from spqfmt.container.stacks import MatrixRecord, stack_of
from spqfmt.loaders.packed.embedding import PackedEmbedding
from spqfmt.loaders.packed.experts import pack_experts
from spqfmt.loaders.packed.modules import Packed, PackedConv1D, PackedLinear, PackedProduct
from spqfmt.loaders.packed.rows_apart import PackedRows, RowsApart
from spqfmt.models.experts import ExpertsPlace
from spqfmt.models.places import Place
from spqfmt.records import TensorRecord
from spqfmt.residency.inventory import Expert, Inventory, Item
from spqfmt.residency.parts import PART_BYTES, cut
from spqfmt.residency.sides import side_bytes
from spqfmt.residency.workspace import workspace_bytes


@dataclass(frozen=True)
class Packable:
    """The tensors of a file by name, tied names included, each with the record that holds its values."""

    records: Mapping[str, TensorRecord]
    reader_numbers: Mapping[str, int]
    """Numbers of readers by the holding record's name."""

    @classmethod
    def of(cls, readers: Sequence[Reader]) -> "Packable":
        """Find the tensors in all files of a model."""
        records, numbers = {}, {}
        for number, reader in enumerate(readers):
            for record in reader.index.tensors:
                holder = record if record.tied_to is None else reader.index.by_name[record.tied_to]
                records[record.name] = holder
                numbers[holder.name] = number
        return cls(records, numbers)


def replace(
    model: Any, places: Sequence[Place], dtype: torch.dtype, *, int8_activations: bool | None
) -> None:
    """Put packed modules into their places. `int8_activations` None is what each record says, and else what is fast."""
    _open_rows(model, places, dtype)
    tied = model.all_tied_weights_keys
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    for place in places:
        old = model.get_submodule(place.module)
        if place.is_embedding:
            new: Packed = PackedEmbedding(place.record, dtype, old.padding_idx, place.share)
        else:
            wanted = True if place.record.activation_quantization is not None else None
            kind: type[PackedProduct] = PackedConv1D if isinstance(old, Conv1D) else PackedLinear
            kind = kind if place.heads is None else PackedRows
            new = kind(
                place.record,
                dtype,
                old.bias,
                int8_activations=wanted if int8_activations is None else int8_activations,
                share=place.share,
            )
        new.is_tied = f"{place.module}.weight" in tied
        new.tied = next((a for a, b in tied.items() if b == f"{place.module}.weight"), None)
        # A module that others share is to be replaced for all of them.
        for name in names[old]:
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, new)
    replaced = {f"{place.module}.weight" for place in places}
    # What has no parameter cannot be tied; both sides compute from the same record.
    model.all_tied_weights_keys = {a: b for a, b in tied.items() if a not in replaced and b not in replaced}


def _open_rows(model: Any, places: Sequence[Place], dtype: torch.dtype) -> None:
    """Make modules of the parts of layers whose rows the file has apart."""
    parts: dict[str, list[Place]] = {}
    for place in places:
        if place.heads is not None:
            parts.setdefault(place.module.rpartition(".")[0], []).append(place)
    for name, of_layer in parts.items():
        parent, _, own = name.rpartition(".")
        sizes = {place.module.rpartition(".")[2]: place.record.matrix_shape for place in of_layer}
        setattr(model.get_submodule(parent), own, RowsApart(of_layer[0].heads or 1, sizes, dtype))


def replace_experts(model: Any, places: Sequence[ExpertsPlace], dtype: torch.dtype) -> None:
    """Let the modules of experts compute from packed weights, each as the same module of another class."""
    for place in places:
        pack_experts(model.get_submodule(place.module), place, dtype)


def inventory_of(
    model: Any,
    places: Sequence[Place],
    packable: Packable,
    dtype: torch.dtype,
    *,
    experts: Sequence[ExpertsPlace] = (),
    values_bytes: int = 0,
    n_floats: int | None = None,
) -> Inventory:
    """What a model with its `places` replaced will hold, in the order of the file, with a tied head last.

    `values_bytes`: as Inventory has them. `n_floats`: numbers in ordinary parameters; None: all that the model has.
    """
    if n_floats is None:
        n_floats = sum(parameter.numel() for parameter in model.parameters())
    products = {place.record.name for place in places if not place.is_embedding}
    lookups = {place.record.name for place in places if place.is_embedding}
    records = {place.record.name: place.record for place in places}
    shares = {record.name: place.share for place in experts for record in place.records}
    of_experts = {record.name: record for place in experts for record in place.records}
    numbers = {
        record.name: Expert(number, expert)
        for number, place in enumerate(experts)
        for each in place.matrices.values()
        for expert, pieces in enumerate(each)
        for record in pieces
    }
    order = {name: i for i, name in enumerate(packable.records)}
    both = products & lookups

    def use(record: TensorRecord) -> tuple[bool, int, int]:
        number = record.number if isinstance(record, MatrixRecord) else 0
        return record.name in both, order[stack_of(record).name], number

    items = [
        Item(
            part,
            products=record.name in products or record.name in shares,
            lookups=record.name in lookups,
            share=shares.get(record.name),
            expert=numbers.get(record.name),
        )
        for record in sorted((records | of_experts).values(), key=use)
        for part in cut(record, packable.reader_numbers[stack_of(record).name], PART_BYTES)
    ]
    records |= of_experts
    return Inventory(
        items=tuple(items),
        float_bytes=n_floats * dtype.itemsize,
        side_bytes=side_bytes([item.part for item in items]),
        workspace_bytes=max(
            (workspace_bytes(*record.matrix_shape, dtype.itemsize) for record in records.values()), default=0
        ),
        values_bytes=values_bytes,
    )
