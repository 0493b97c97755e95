"""How transformers cuts the layers of a model that ranks share: which by their outputs, which by their inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from spqfmt.models.places import bare_model
from spqfmt.models.targets import Targets

ROWS = frozenset({"colwise", "colwise_gather_output", "colwise_rep", "embedding_rowwise"})
"""Styles of which a rank has some rows of a matrix, [outputs, inputs] or an embedding."""
COLUMNS = frozenset({"rowwise", "rowwise_split_input", "rowwise_rep", "embedding_colwise"})
"""Styles of which a rank has some columns."""


def styles_of(model: Any) -> Mapping[str, str]:
    """The style of each module and parameter that transformers' plan for the class names; empty where it has none."""
    plan: Mapping[str, str] = model._tp_plan or {}
    styles: Mapping[str, str] = model._expand_parallel_plan(plan) if plan else {}
    return styles


def part_of(n: int, rank: int, size: int) -> range:
    """The elements of a dimension that a rank has, as torch cuts them."""
    each = -(-n // size)
    return range(min(n, each * rank), min(n, each * (rank + 1)))


def cut_tensors(
    assets: Mapping[str, bytes], tensors: Iterable[str], shapes: Sequence[tuple[int, ...]], name: str
) -> dict[str, bool]:
    """Tell by name, of the tensors that ranks cut, whether along the inputs of their layer.

    `assets` have the model's config. Empty where transformers has no such model, or no plan for it.
    """
    model = bare_model(assets, shapes, name)
    if model is None:
        return {}
    styles = styles_of(model)
    names, modules = list(tensors), dict(model.named_modules())
    targets, found = Targets(model, names), {}
    for tensor in names:
        parameter, alone = targets.find(tensor)
        module, _, last = parameter.rpartition(".")
        style = styles.get(module, "")
        is_layer = alone and last == "weight" and isinstance(modules.get(module), nn.Linear | nn.Embedding)
        if is_layer and style in ROWS | COLUMNS:
            found[tensor] = style in COLUMNS
    return found
