"""Which weights become 0: importance of a weight, and the share or pattern that is cut."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import torch

from spqfmt.errors import OptionError
from spqfmt.quantize.base import MethodOptions
from spqfmt.quantize.grids import ordinary_exponent
from spqfmt.quantize.inputs import InputStatistics
from spqfmt.quantize.saliency import saliency
from spqfmt.quantize.statistics import times_power

Scores = Callable[[torch.Tensor, InputStatistics, MethodOptions], torch.Tensor]
PATTERNS: Mapping[str, tuple[int, int] | None] = MappingProxyType(
    {"unstructured": None, "2:4": (2, 4), "4:8": (4, 8)}
)
"""Weights kept of how many consecutive columns."""
PER_TENSOR = frozenset({"magnitude", "linf"})
"""Criteria that compare all weights of a tensor; the others compare those of a row, as Wanda and JSQ do."""


def _magnitude(matrix: torch.Tensor, inputs: InputStatistics, options: MethodOptions) -> torch.Tensor:
    return matrix.abs()


def _wanda(matrix: torch.Tensor, inputs: InputStatistics, options: MethodOptions) -> torch.Tensor:
    # ||X_j||_2 |W_ij| but for a factor that all weights share.
    return _product(matrix, inputs.columns.rms)


def _linf(matrix: torch.Tensor, inputs: InputStatistics, options: MethodOptions) -> torch.Tensor:
    # Double Compression, equation 4.
    return _product(matrix, inputs.columns.largest)


def _product(matrix: torch.Tensor, of_inputs: torch.Tensor) -> torch.Tensor:
    """|W_ij| x_j, in float32 unless a product has no place in it."""
    product = matrix.abs() * of_inputs
    lost = (product < torch.finfo(torch.float32).tiny) & (matrix != 0) & (of_inputs != 0)
    if torch.isinf(product).any() or lost.any():
        product = matrix.double().abs_() * of_inputs
    return product


def _sar(matrix: torch.Tensor, inputs: InputStatistics, options: MethodOptions) -> torch.Tensor:
    """But for a factor of each row, whose weights alone are compared: outputs have a place in float32 then."""
    assert options.range_weight is not None
    exponent = ordinary_exponent(float(inputs.columns.largest.max()))
    rms, tokens = (times_power(values, -exponent) for values in (inputs.columns.rms, inputs.tokens))
    largest = matrix.abs().amax(1)
    if any(ordinary_exponent(float(bound)) for bound in torch.where(largest > 0, largest, 1.0).aminmax()):
        matrix = torch.from_numpy(np.ldexp(matrix.numpy(), -np.frexp(largest.numpy())[1][:, None]))
    return saliency(matrix, rms, tokens, options.range_weight)


CRITERIA: Mapping[str, Scores] = MappingProxyType(
    {"magnitude": _magnitude, "wanda": _wanda, "linf": _linf, "sar": _sar}
)


def check_pruning(options: MethodOptions) -> None:
    """Raise OptionError for a criterion, share or pattern that there is not. All three must be given."""
    assert options.sparsity is not None
    if options.pruning not in {"none", "sparsegpt", *CRITERIA}:
        raise OptionError(f"pruning must be one of none, sparsegpt, {', '.join(CRITERIA)}")
    if options.pattern not in PATTERNS:
        raise OptionError(f"pattern must be one of {', '.join(PATTERNS)}")
    if not 0 <= options.sparsity < 1:
        raise OptionError("sparsity is the share of weights that become 0: from 0 to below 1")
    if options.pattern != "unstructured" and options.sparsity != 0.5:
        raise OptionError(f"pattern {options.pattern} means a sparsity of 0.5")
    if options.pruning == "none" and options.sparsity:
        raise OptionError("a sparsity above 0 needs a criterion: --pruning")


def prune(matrix: torch.Tensor, inputs: InputStatistics, options: MethodOptions) -> torch.Tensor:
    """`matrix` [out, in] with the least important weights 0, changed in place and returned.

    Where no input was ever other than 0, every input-aware criterion is 0 for all weights; magnitude decides then, as
    it does where inputs are not finite.
    """
    assert options.pruning is not None
    assert options.sparsity is not None
    name = options.pruning if inputs.tell else "magnitude"
    scores = CRITERIA[name](matrix, inputs, options)
    pattern = PATTERNS[options.pattern or "unstructured"]
    if pattern is not None:
        mask = least_of_each(scores, *pattern)
    elif name in PER_TENSOR:
        mask = least_of_rows(scores.reshape(1, -1), options.sparsity).reshape(matrix.shape)
    else:
        mask = least_of_rows(scores, options.sparsity)
    return matrix.masked_fill_(mask, 0)


def least_of_rows(scores: torch.Tensor, share: float) -> torch.Tensor:
    """True for exactly round(share * columns) elements of each row with the least scores; bool [rows, columns]."""
    mask = torch.zeros_like(scores, dtype=torch.bool)
    n = round(share * scores.shape[1])
    if n:
        mask.scatter_(1, torch.topk(scores, n, dim=1, largest=False, sorted=False).indices, value=True)
    return mask


def least_of_each(scores: torch.Tensor, kept: int, width: int) -> torch.Tensor:
    """True for all but the `kept` largest of every `width` consecutive columns; bool [rows, columns].

    Columns beyond the last whole group keep at most `kept` as well, so that padding them with 0 obeys the pattern.
    """
    rows, columns = scores.shape
    padded = torch.nn.functional.pad(scores, (0, -columns % width), value=-torch.inf)
    groups = padded.reshape(rows, -1, width)
    mask = torch.ones_like(groups, dtype=torch.bool)
    mask.scatter_(2, torch.topk(groups, kept, dim=2, sorted=False).indices, value=False)
    return mask.reshape(rows, -1)[:, :columns]
