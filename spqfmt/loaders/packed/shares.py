"""What a rank computes of the layers whose weights are packed, by transformers' plan for a model's class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import distributed, nn

from spqfmt.container.slices import held_channels, slice_of
from spqfmt.errors import OptionError
from spqfmt.models.own_code import own_code
from spqfmt.models.places import Place, Share, whole_ties
from spqfmt.models.rank_plan import COLUMNS, ROWS, part_of, styles_of
from spqfmt.models.treatments import Treatment

_WHOLE = frozenset({"replicate", "replicated_with_grad_allreduce", "mla_kv_a_proj", "all_reduce"})
"""Styles of which each rank has the whole layer."""


@dataclass(frozen=True)
class Shared:
    """Places of which each rank has its share. `whole`: by the tensor's name, why a rank reads more than that."""

    places: list[Place]
    whole: Mapping[str, str]


def share_places(model: Any, places: Sequence[Place], rank: int, size: int) -> Shared:
    """Cut the places as transformers cuts parameters. `model` has no packed modules yet.

    Left out is what is cut in a way that no slice is: it stays parameters, which transformers cuts.
    """
    plan = styles_of(model)
    code = own_code(model)
    read = frozenset().union(*code.read.values(), *code.read_somewhere)
    kept: list[Place] = []
    whole: dict[str, str] = {}
    for place in places:
        style = plan.get(place.module)
        if style is None or style in _WHOLE:
            kept.append(place)
            continue
        if why := _left_out(place, model.get_submodule(place.module), style, read):
            whole[place.tensor] = f"decoded: {why}"
            continue
        of_columns = style in COLUMNS
        wanted = part_of(place.record.matrix_shape[1 if of_columns else 0], rank, size)
        held, why = held_channels(place.record, wanted, of_columns=of_columns)
        if why:
            whole[place.tensor] = why
        share = Share(place.record.matrix_shape, of_columns=of_columns, wanted=wanted, held=held)
        record = slice_of(place.record, held, of_columns=of_columns)
        kept.append(replace(place, record=record, share=share))
    return Shared(whole_ties(kept, model.all_tied_weights_keys), whole)


def _left_out(place: Place, module: Any, style: str, read: frozenset[str]) -> str:
    if style not in ROWS | COLUMNS or not isinstance(module, nn.Linear | nn.Embedding):
        return f"ranks share it as {style}"
    if place.is_embedding != style.startswith("embedding"):
        return f"ranks share it as {style}"
    if place.module in read:
        return "the model's own code reads the weight"
    quantized = place.record.activation_quantization is not None
    if style in COLUMNS and quantized and "column_scales" in place.record.by_role:
        return "its inputs are rounded with scales of columns"
    return ""


def n_float_numbers(model: Any, size: int) -> int:
    """The most numbers that a rank has of ordinary parameters, as transformers cuts them."""
    plan = styles_of(model)
    total = 0
    for name, parameter in model.named_parameters():
        at = _dimension(plan.get(name), parameter.ndim)
        if at is None:
            total += parameter.numel()
        else:
            n = parameter.shape[at]
            # Of what is packed along a dimension each of two halves is cut.
            total += parameter.numel() // n * min(n, -(-n // size) + 1) if n else 0
    return total


def _dimension(style: str | None, ndim: int) -> int | None:
    if style in {"colwise", "colwise_gather_output", "colwise_rep", "packed_colwise"}:
        return -1 if ndim == 1 else ndim - 2
    if style in {"rowwise", "rowwise_split_input", "rowwise_rep", "packed_rowwise"}:
        return None if ndim == 1 else ndim - 1
    return {"embedding_rowwise": 0, "embedding_colwise": ndim - 1}.get(style or "")


def of_all_inputs(
    treat: Treatment,
    share: Share,
) -> Treatment:
    """`treat` for the part of the inputs that a share takes, of which other ranks have the rest."""
    width, part = share.shape[1], slice(share.wanted.start, share.wanted.stop)

    def treat_part(x: torch.Tensor) -> torch.Tensor:
        inputs = x.new_zeros(*x.shape[:-1], width)
        inputs[..., part] = x.detach()
        distributed.all_reduce(inputs)
        if x.requires_grad:
            inputs = inputs.clone()
            inputs[..., part] = x
        return treat(inputs)[..., part]

    return treat_part


def is_of_each(clamp: Mapping[str, object] | None, quantization: Mapping[str, object] | None) -> bool:
    """Whether what these records ask for is done with each input by itself."""
    return quantization is None and (clamp is None or clamp["kind"] == "range")


def refuse_rounding(places: Sequence[Place]) -> None:
    """Raise OptionError where a rank cannot round the inputs of a layer to integers as one process does."""
    for place in places:
        of_columns = place.share is not None and place.share.of_columns
        if of_columns and "column_scales" in place.record.by_role:
            raise OptionError(
                f"activations int8: {place.module} is cut along its inputs, which have scales; leave activations out"
            )
