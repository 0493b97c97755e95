"""Tensors added up by what they have in common."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

from spqfmt.reading.report.records import CostParts, GroupReport, TensorReport

Grouping = Literal["layer", "projection", "scheme"]

GROUPINGS: dict[Grouping, Callable[[TensorReport], str]] = {
    "layer": lambda tensor: tensor.layer,
    "projection": lambda tensor: tensor.projection,
    "scheme": lambda tensor: tensor.scheme,
}


def group(tensors: Iterable[TensorReport], by: Grouping) -> tuple[GroupReport, ...]:
    """The tensors in groups, in the order in which a group's first tensor comes."""
    return tuple(each_group(tensors, by))


def each_group(tensors: Iterable[TensorReport], by: Grouping) -> Iterator[GroupReport]:
    """Those of `group`, one after the other."""
    members: dict[str, list[TensorReport]] = {}
    for tensor in tensors:
        members.setdefault(GROUPINGS[by](tensor), []).append(tensor)
    for name, of in members.items():
        yield add_up(name, of)


def add_up(name: str, tensors: Sequence[TensorReport]) -> GroupReport:
    """Tensors as one group of this name."""
    n_weights, stored_bytes = sum(t.n_weights for t in tensors), sum(t.stored_bytes for t in tensors)
    raw_bytes, outliers = sum(t.raw_bytes for t in tensors), sum(t.outliers for t in tensors)
    return GroupReport(
        name=name,
        n_tensors=len(tensors),
        n_weights=n_weights,
        raw_bytes=raw_bytes,
        stored_bytes=stored_bytes,
        bits_per_weight=8 * stored_bytes / n_weights if n_weights else 0.0,
        entropy_bits_per_weight=mean_entropy(tensors),
        ratio=raw_bytes / stored_bytes if stored_bytes else None,
        share=sum(t.share for t in tensors),
        outliers=outliers,
        outlier_share=outliers / n_weights if n_weights else 0.0,
        parts=CostParts.sum(t.parts for t in tensors),
    )


def mean_entropy(tensors: Iterable[TensorReport]) -> float | None:
    """Order-0 bound in bits a weight of all the tensors together; None where one that has weights does not say it."""
    n_bits, n_weights = 0.0, 0
    for tensor in tensors:
        if tensor.n_weights:
            if tensor.entropy_bits_per_weight is None:
                return None
            n_bits += tensor.entropy_bits_per_weight * tensor.n_weights
            n_weights += tensor.n_weights
    return n_bits / n_weights if n_weights else None
