"""What of a file is experts, whether it holds their matrices one by one or stacked."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from spqfmt.importers._layout import is_stack
from spqfmt.reading.report.records import TensorReport

_ONE = re.compile(r"(?P<experts>.*\.experts)\.(?P<number>\d+)\.")


@dataclass(frozen=True)
class ExpertsReport:
    """`n_modules` of experts, with at most `n_experts` in one; their weights and what they take in the file."""

    n_modules: int
    n_experts: int
    n_weights: int
    stored_bytes: int


def experts_in(tensors: Sequence[TensorReport]) -> ExpertsReport | None:
    """Find them by names and shapes; None where there are none."""
    numbers: dict[str, set[int]] = defaultdict(set)
    found = []
    for tensor in tensors:
        if one := _ONE.match(tensor.name):
            numbers[one["experts"]].add(int(one["number"]))
        elif is_stack(tensor.name, tensor.shape):
            numbers[tensor.name.removesuffix(".weight").rpartition(".")[0]] |= set(range(tensor.shape[0]))
        else:
            continue
        found.append(tensor)
    if not found:
        return None
    return ExpertsReport(
        n_modules=len(numbers),
        n_experts=max(map(len, numbers.values())),
        n_weights=sum(tensor.n_weights for tensor in found),
        stored_bytes=sum(tensor.stored_bytes for tensor in found),
    )
