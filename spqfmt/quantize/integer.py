"""Methods that prune, scale input channels and round to integers: dc, jsq and their baselines, rows of one table.

Order for every layer of a block: prune (pruning.py), scale (scaling.py), round, choose the layout of the codes. Layers
that read the same input share its scale.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from spqfmt.errors import OptionError
from spqfmt.models.treatments import TOKEN_INT8
from spqfmt.quantize import embeddings
from spqfmt.quantize.base import MethodOptions, Weight
from spqfmt.quantize.calibrated import Block, Layer, Result, Site
from spqfmt.quantize.checks import check_bits, check_choice, check_grouping
from spqfmt.quantize.inputs import InputStatistics
from spqfmt.quantize.layouts import LaidOut
from spqfmt.quantize.outlier_columns import keep_columns
from spqfmt.quantize.pruning import check_pruning, prune
from spqfmt.quantize.rtn import round_groups, round_symmetric
from spqfmt.quantize.scaling import FORMS, as_column_scale, channel_scale, fold, fold_results
from spqfmt.quantize.sparsegpt import sparse_update
from spqfmt.schemes.base import Quantized
from spqfmt.schemes.floats import Scale

TAKES = frozenset(
    {
        "bits",
        "granularity",
        "group_size",
        "embedding_bits",
        "damping",
        "alpha",
        "scaling",
        "pruning",
        "sparsity",
        "pattern",
        "activations",
    }
)
SAR_TAKES = frozenset({"range_weight", "saliency_tokens"})


@dataclass(frozen=True)
class IntegerMethod:
    """One row of the table: a name and the defaults of its options."""

    name: str
    defaults: MethodOptions
    takes: frozenset[str] = TAKES | SAR_TAKES
    calibrated: bool = True
    folds: bool = True
    """Whether scales go into norms where they can; else all stay with the weights."""

    def check(self, options: MethodOptions) -> MethodOptions:
        """The row's defaults where nothing was given. Raises OptionError for what does not go together."""
        given = _given(options)
        full = MethodOptions(**_COMMON | _given(self.defaults) | given)
        if "pattern" in given and given["pattern"] != "unstructured" and "sparsity" not in given:
            full = replace(full, sparsity=0.5)
        if "group_size" in given and "granularity" not in given:
            full = replace(full, granularity="group")
        bits, embedding_bits = check_bits(full, 8)
        granularity, group_size = check_grouping(full, 128)
        check_pruning(full)
        check_choice("scaling", full.scaling, FORMS)
        check_choice("activations", full.activations, ("int8", "float"))
        check_choice("saliency tokens", full.saliency_tokens, ("mean", "all"))
        assert full.alpha is not None
        assert full.range_weight is not None
        if not 0 <= full.alpha <= 1:
            raise OptionError("alpha is a number from 0 to 1")
        if not 0 <= full.range_weight < float("inf"):
            raise OptionError("range weight is a number from 0 on")
        if granularity == "group" and full.scaling != "none":
            raise OptionError("scaled input channels go with granularity tensor or row, not with groups")
        if full.threshold is not None and (full.threshold <= 0 or granularity == "group"):
            raise OptionError("the threshold of outlier columns is above 0 and goes with rows")
        return replace(full, bits=bits, embedding_bits=embedding_bits, group_size=group_size)

    def describe(self, weight: Weight, options: MethodOptions) -> str:
        """What is pruned, scaled and rounded."""
        if weight.role != "linear":
            return embeddings.describe(weight, options)
        size = f" of {options.group_size}" if options.granularity == "group" else ""
        words = [f"{options.bits} bits per {options.granularity}{size}"]
        if options.scaling != "none":
            words.insert(0, f"inputs scaled (alpha {options.alpha:g})")
        if options.sparsity:
            share = f"{options.sparsity:.0%}" if options.pattern == "unstructured" else options.pattern
            words.insert(0, f"{share} pruned by {options.pruning}")
        if options.activations == "int8":
            words.append("activations int8 per token")
        return ", ".join(words)

    def quantize(self, weight: Weight, value: torch.Tensor, options: MethodOptions) -> Quantized:
        """Round embedding and head to nearest."""
        return embeddings.quantize(weight, value, options)

    def accumulator(self, n_columns: int, options: MethodOptions) -> InputStatistics:
        """Column statistics and what the criterion needs."""
        return InputStatistics(n_columns, options)

    def quantize_block(self, block: Block, options: MethodOptions) -> Mapping[str, Result]:
        """Site by site; a folded norm is a result too."""
        results: dict[str, Result] = {}
        for site in block.sites:
            results |= self._quantize_site(block, site, options)
        return results

    def _quantize_site(self, block: Block, site: Site, options: MethodOptions) -> dict[str, Result]:
        inputs = site.statistics
        assert isinstance(inputs, InputStatistics)
        pruned = [_pruned(layer, inputs, options) for layer in site.layers]
        matrices = [matrix for matrix, _ in pruned]
        clamp = self._clamp(site, options)
        scale, column_scale, results = _scaled(block, site, matrices, options, folds=self.folds)
        what = "all inputs are zero" if inputs.columns.is_finite else "the inputs are not finite"
        dead = "" if inputs.tell else f"{what}, magnitude decides, unscaled"
        for layer, (cut, note) in zip(site.layers, pruned, strict=True):
            matrix = cut if scale is None else cut * scale
            name = layer.weight.name
            results[name] = Result(
                _rounded(
                    layer.weight, matrix, inputs.columns.largest, column_scale=column_scale, options=options
                ),
                activation_clamp=clamp,
                activation_quantization=TOKEN_INT8 if options.activations == "int8" else None,
                notes=tuple(f"{name}: {text}" for text in (dead, note) if text),
            )
        return results

    def _clamp(self, site: Site, options: MethodOptions) -> Mapping[str, object] | None:
        """The clamp record of the site's input."""
        return None


_COMMON: dict[str, Any] = {
    "granularity": "row",
    "alpha": 0.5,
    "scaling": "none",
    "pruning": "none",
    "sparsity": 0.0,
    "pattern": "unstructured",
    "activations": "int8",
    "range_weight": 2.0,
    "saliency_tokens": "mean",
    "damping": 0.01,
}


def _given(options: MethodOptions) -> dict[str, Any]:
    return {name: value for name, value in vars(options).items() if value is not None}


def _pruned(layer: Layer, inputs: InputStatistics, options: MethodOptions) -> tuple[torch.Tensor, str]:
    matrix = layer.matrix()
    if not options.sparsity:
        return matrix, ""
    if options.pruning == "sparsegpt":
        return sparse_update(matrix, inputs, options)
    return prune(matrix, inputs, options), ""


def _scaled(
    block: Block, site: Site, matrices: Sequence[torch.Tensor], options: MethodOptions, *, folds: bool
) -> tuple[torch.Tensor | None, Scale | None, dict[str, Result]]:
    """s to multiply the weights by, what of it stays with them as a column scale, and the results of a folded norm."""
    inputs = site.statistics
    assert isinstance(inputs, InputStatistics)
    assert options.alpha is not None
    largest_weight = torch.stack([matrix.abs().amax(0) for matrix in matrices]).amax(0)
    scale = channel_scale(inputs.columns.largest, largest_weight, options.scaling or "none", options.alpha)
    if scale is None:
        return None, None, {}
    found = fold(block, site, scale) if folds else None
    if found is not None:
        return found.scale, None, fold_results(block, found)
    column_scale, scale = as_column_scale(scale)
    return scale, column_scale, {}


def _rounded(
    weight: Weight,
    matrix: torch.Tensor,
    largest_input: torch.Tensor,
    column_scale: Scale | None,
    options: MethodOptions,
) -> Quantized:
    assert options.bits is not None
    if options.granularity == "group":
        assert options.group_size is not None
        return round_groups(matrix, options.bits, options.group_size)
    outliers = None
    if options.threshold is not None:
        outliers = keep_columns(matrix, largest_input > options.threshold, weight.dtype)
    rounded = round_symmetric(matrix, options.bits, per_row=options.granularity == "row")
    return LaidOut(
        codes=rounded.codes,
        step=rounded.step,
        code_dtype=rounded.code_dtype,
        row_scale=rounded.row_scale,
        column_scale=column_scale,
        outliers=outliers,
    )
