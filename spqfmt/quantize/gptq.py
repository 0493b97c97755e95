"""Method gptq (arXiv 2210.17323): rounding with error feedback, on one grid a row or one a group.

Asymmetric grids between minimum and maximum, scales in f16 where that holds them, whole zero points; groups are fitted
when their turn comes, to the weights as the feedback has left them, in the order in which columns are quantized.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch

from spqfmt.quantize import embeddings
from spqfmt.quantize.base import MethodOptions, Weight
from spqfmt.quantize.calibrated import Block, Result
from spqfmt.quantize.checks import check_bits, check_damping, check_grouping
from spqfmt.quantize.feedback import Factor, factorize, sweep
from spqfmt.quantize.grids import MinMax, code_dtype, fit_min_max, in_groups, scale_values, widest
from spqfmt.quantize.statistics import Hessian
from spqfmt.schemes.base import Quantized
from spqfmt.schemes.group_numbers import GroupValues
from spqfmt.schemes.grouped import Grouped


class Gptq:
    """4 bits, damping 0.01 and act-order where not told otherwise; one grid a row without a group size."""

    name = "gptq"
    takes = frozenset({"bits", "granularity", "group_size", "embedding_bits", "damping", "act_order"})
    calibrated = True

    def check(self, options: MethodOptions) -> MethodOptions:
        """Return the options with defaults filled in."""
        bits, embedding_bits = check_bits(options, 4)
        granularity, group_size = check_grouping(options, 128, ("row", "group"))
        return replace(
            options,
            bits=bits,
            granularity=granularity,
            group_size=group_size,
            embedding_bits=embedding_bits,
            damping=check_damping(options.damping, 0.01),
            act_order=options.act_order is not False,
        )

    def describe(self, weight: Weight, options: MethodOptions) -> str:
        """Say the bits and what shares a scale."""
        if weight.role != "linear":
            return embeddings.describe(weight, options)
        size = f" of {options.group_size}" if options.granularity == "group" else ""
        return f"{options.bits} bits per {options.granularity}{size}"

    def quantize(self, weight: Weight, value: torch.Tensor, options: MethodOptions) -> Quantized:
        """Round embedding and head to nearest."""
        return embeddings.quantize(weight, value, options)

    def accumulator(self, n_columns: int, options: MethodOptions) -> Hessian:
        """Return what sums up the Hessian of the inputs."""
        return Hessian(n_columns)

    def quantize_block(self, block: Block, options: MethodOptions) -> Mapping[str, Result]:
        """Layer by layer; those with one input share the factor of its Hessian."""
        assert options.bits is not None
        assert options.damping is not None
        results = {}
        for site in block.sites:
            assert isinstance(site.statistics, Hessian)
            factor = factorize(
                site.statistics.matrix, options.damping, act_order=bool(options.act_order)
            ).here()
            for layer in site.layers:
                matrix = layer.matrix()
                grouped = quantize_matrix(matrix, factor, options.bits, options.group_size)
                size = min(grouped.group_size, matrix.shape[1])
                results[layer.weight.name] = Result(
                    grouped,
                    formula_bits=matrix.numel() * (options.bits + (16 + options.bits) / size),
                    notes=layer_notes(layer.weight.name, factor, matrix, options.group_size),
                )
        return results


def layer_notes(name: str, factor: Factor, matrix: torch.Tensor, group_size: int | None) -> tuple[str, ...]:
    """What the user should know of how this layer came out."""
    notes: tuple[str, ...] = (f"{name}: {factor.note}",) if factor.note else ()
    columns = matrix.shape[1]
    if group_size is not None and columns % group_size:
        notes += (
            f"{columns} columns are no multiple of {group_size}: the last group of each row is smaller",
        )
    return notes


def quantize_matrix(matrix: torch.Tensor, factor: Factor, bits: int, group_size: int | None) -> Grouped:
    """GPTQ of `matrix`, float32 [out, in]; `group_size` None is one grid a row."""
    order = factor.order
    matrix = matrix if order is None else matrix[:, order]
    size = matrix.shape[1] if group_size is None else group_size
    needed = fit_min_max(in_groups(matrix, size), bits).dtype
    while True:
        dtype = needed
        columns = matrix.t().clone(memory_format=torch.contiguous_format)
        codes, grids = _quantize_columns(columns, factor, bits, group_size=size, dtype=dtype)
        # Only the feedback tells what the grids are fitted to.
        needed = widest(grid.dtype for grid in grids)
        if needed == dtype:
            break
    stored = codes.t()
    if order is not None and group_size is None:
        # One grid holds for the whole row: the codes can go back to their own columns.
        stored = stored[:, torch.argsort(order)]
    return Grouped(
        codes=stored.contiguous().numpy(),
        code_dtype=code_dtype(bits),
        group_size=size,
        bits=bits,
        scale=scale_values(torch.stack([grid.scale for grid in grids], 1), dtype),
        zero_point=GroupValues(
            torch.stack([grid.zero for grid in grids], 1).to(torch.uint8).numpy(), code_dtype(bits)
        ),
        permutation=None if order is None or group_size is None else order.numpy(),
    )


def _quantize_columns(
    work: torch.Tensor, factor: Factor, bits: int, group_size: int, dtype: str
) -> tuple[torch.Tensor, list[MinMax]]:
    """Codes uint8 [columns, rows] and the grids of all groups, their scales in `dtype` or a wider one."""
    highest = float(2**bits - 1)
    codes = torch.empty(work.shape, dtype=torch.uint8)
    grids: list[MinMax] = []

    def fit(_: int, group: torch.Tensor) -> None:
        grids.append(fit_min_max(group.t(), bits, dtype))

    def round_column(number: int, column: torch.Tensor) -> torch.Tensor:
        scale, zero = grids[-1].scale, grids[-1].zero
        code = (torch.round(column / scale) + zero).clamp_(0, highest)
        codes[number] = code
        return scale * (code - zero)

    sweep(work, factor.upper, group_size, fit=fit, round_column=round_column)
    return codes, grids


METHOD = Gptq()
