"""Which modules of a transformers model compute from packed weights, and what a model holds beside these.

Loaders put packed modules there; a pack for a ceiling of memory must know it before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from spqfmt.container.stacks import stack_of
from spqfmt.errors import SpqError
from spqfmt.importers._quiet import quiet_transformers
from spqfmt.importers.base import SourceModel
from spqfmt.models.assets import asset_folder
from spqfmt.models.claims import earned, false_claim
from spqfmt.models.config import find_model_class, read_config
from spqfmt.models.experts import find_experts
from spqfmt.models.own_code import own_code
from spqfmt.models.stacked_heads import rows_apart, whole_shape
from spqfmt.models.targets import Targets
from spqfmt.records import TensorRecord
from spqfmt.schemes.registry import is_packable

_BY_MATRIX = {"group_rows", "trellis"}
"""Parameters of what begins anew with each matrix of a stack."""


@dataclass(frozen=True)
class Share:
    """What a rank computes of a layer's matrix of `shape`: the rows or columns that are `wanted`, of those `held`."""

    shape: tuple[int, int]
    of_columns: bool
    wanted: range
    held: range

    @property
    def inside(self) -> slice:
        """Where what is wanted lies in what is held."""
        return slice(self.wanted.start - self.held.start, self.wanted.stop - self.held.start)

    @property
    def is_exact(self) -> bool:
        """Whether no more is held than is wanted."""
        return self.wanted == self.held


@dataclass(frozen=True)
class Place:
    """A module that can be replaced: its name in the model, its tensor's in the file, and what holds the values.

    `share`: what is computed there of the layer, by one rank of several; None for all of it.
    """

    module: str
    tensor: str
    record: TensorRecord
    is_embedding: bool
    share: Share | None = None
    heads: int | None = None
    """Heads of a stack of rows that the file has apart (stacked_heads.py); `module` is a part of the layer then."""

    @property
    def parameter(self) -> str:
        """The name of the model's parameter that it is, or is a part of."""
        return f"{self.module if self.heads is None else self.module.rpartition('.')[0]}.weight"


class Use(NamedTuple):
    """What a model does with a packed tensor: a product on every pass, and lookups of rows.

    `share`: of experts, the part of all tokens that each is used for.
    """

    products: bool
    lookups: bool
    share: float | None = None


@dataclass(frozen=True)
class Held:
    """Packed tensors by name, and how many numbers stay in ordinary parameters."""

    uses: Mapping[str, Use]
    n_floats: int
    n_values: int = 0
    """Weights that its own code reads at a time."""


def find_places(model: Any, records: Mapping[str, TensorRecord]) -> list[Place]:
    """Plain linear layers (also GPT-2's) and embeddings whose weight the file holds in a fitting form.

    `records` by name, of tied tensors those that hold the values. Other modules, those that a model wants in
    float32, and those that it changes as it runs, stay as they are; of experts find_experts tells.
    """
    kept = [*(model._keep_in_fp32_modules or ()), *(model._keep_in_fp32_modules_strict or ())]
    tied: Mapping[str, str] = model.all_tied_weights_keys
    changed = own_code(model).changed
    targets = Targets(model, records)
    stored: dict[str, str] = {}
    for tensor in records:
        parameter, alone = targets.find(tensor)
        if alone:
            stored.setdefault(parameter, tensor)
    apart = rows_apart((name, record.shape) for name, record in records.items())
    places: list[Place] = []
    for name, module in model.named_modules():
        weight = f"{name}.weight"
        if weight in apart and weight not in stored and name not in changed:
            places += _rows_of(module, name, {part: records[part] for part in apart[weight]})
            continue
        tensor_name = stored.get(weight) or stored.get(tied.get(weight, ""))
        if tensor_name is None or name in changed or any(part in kept for part in name.split(".")):
            continue
        record = records[tensor_name]
        if _fits(module, record):
            places.append(Place(name, tensor_name, record, isinstance(module, nn.Embedding)))
    return whole_ties(places, tied)


def values_at_once(model: Any, places: Sequence[Place]) -> int:
    """The most weights of the `places` that the model's own code reads, and so has decoded, at a time."""
    # A transposed matrix is decoded first, and turned then.
    sizes = {p.module: p.record.n_weights * (2 if p.record.transposed else 1) for p in places}
    return own_code(model).values_at_once(model, sizes)


def whole_ties(places: list[Place], tied: Mapping[str, str]) -> list[Place]:
    """Leave out those that share a tensor with a module that keeps an ordinary parameter: it would be held twice."""
    found = {place.parameter for place in places}
    broken = {name for pair in tied.items() if not found.issuperset(pair) for name in pair}
    whole = [place for place in places if place.parameter not in broken]
    # A third module may share it with one that is left out now.
    return whole if len(whole) == len(places) else whole_ties(whole, tied)


def _rows_of(module: Any, name: str, stacks: Mapping[str, TensorRecord]) -> list[Place]:
    """The places of a layer's rows that the file has apart; none where not all can be packed."""
    shape = whole_shape({part: record.shape for part, record in stacks.items()})
    flat = {part: replace(record, shape=record.matrix_shape) for part, record in stacks.items()}
    # What runs through the rows of each matrix of a stack does not run through all of them.
    plain = all(is_packable(record) and not _BY_MATRIX & record.parameters.keys() for record in flat.values())
    has_bias = getattr(module, "bias", None) is not None
    if type(module) is not nn.Linear or has_bias or tuple(module.weight.shape) != shape or not plain:
        return []
    return [
        Place(
            module=f"{name}.{part.removesuffix('.weight').rpartition('.')[2]}",
            tensor=part,
            record=record,
            is_embedding=False,
            heads=stacks[part].shape[0],
        )
        for part, record in flat.items()
    ]


def _fits(module: Any, record: TensorRecord) -> bool:
    if not is_packable(record):
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


def held_by_model(source: SourceModel, records: Mapping[str, TensorRecord]) -> Held | None:
    """What transformers' model of the source will hold; None where it has none. `records` as in find_places."""
    model = _skeleton(source)
    if model is None:
        return None
    places = find_places(model, records)
    names = {place.record.name for place in places}
    lookups = {place.record.name for place in places if place.is_embedding}
    products = {place.record.name for place in places if not place.is_embedding}
    experts = find_experts(model, records).places
    replaced = {place.parameter for place in places}
    replaced |= {f"{place.module}.{parameter}" for place in experts for parameter in place.matrices}
    n_floats = sum(p.numel() for name, p in model.named_parameters() if name not in replaced)
    uses = {name: Use(name in products, name in lookups) for name in names}
    uses |= {
        stack_of(record).name: Use(products=True, lookups=False, share=place.share)
        for place in experts
        for record in place.records
    }
    return Held(uses, n_floats, values_at_once(model, places))


class Unmatched(NamedTuple):
    """How a source's tensors and transformers' model of it go together, by the names of each, in order.

    `unused`: tensors that the model has no place for; `missing`: parameters of the model that no tensor is for. What
    the class itself says may be left over (buffers of old checkpoints) or absent is in neither.
    """

    unused: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


def unmatched(source: SourceModel) -> Unmatched:
    """Compare a source with transformers' model of it; nothing differs where it has no such model."""
    model = _skeleton(source)
    if model is None:
        return Unmatched()
    targets = Targets(model, (tensor.name for tensor in source.tensors))
    places = {tensor.name: targets.find_all(tensor.name) for tensor in source.tensors}
    # Of a tied tensor the class has a place for the one that holds the values, or for both.
    names = [tensor.name for tensor in source.tensors if tensor.tied_to is None]
    there = set().union(*places.values())
    for one, other in model.all_tied_weights_keys.items():
        there |= {one, other} if there & {one, other} else set()
    wanted = list(model.state_dict())
    found = SimpleNamespace(
        missing_keys={name for name in wanted if name not in there},
        unexpected_keys={name for name in names if not places[name]},
    )
    model._adjust_missing_and_unexpected_keys(found)
    return Unmatched(
        tuple(name for name in names if name in found.unexpected_keys),
        tuple(name for name in wanted if name in found.missing_keys),
    )


def _skeleton(source: SourceModel) -> Any | None:
    """transformers' model of the source, without weights; None where it has none."""
    return bare_model(source.asset_data, [tensor.shape for tensor in source.tensors], source.architecture)


def bare_model(assets: Mapping[str, bytes], shapes: Sequence[tuple[int, ...]], name: str) -> Any | None:
    """transformers' model of the config among `assets`, without weights, which have these shapes in the file.

    None where it has no such model.
    """
    try:
        with asset_folder(assets) as folder, quiet_transformers():
            if false_claim(folder, len(shapes)):
                return None
            config = read_config(folder, SpqError)
            with torch.device("meta"), earned(name, shapes):
                return find_model_class(config)(config)
    except Exception:  # noqa: BLE001  # a foreign config may make transformers' classes raise anything
        return None
