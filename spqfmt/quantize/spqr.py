"""Method spqr (arXiv 2306.03078): GPTQ in small groups, scales and zero points quantized themselves, outliers kept.

- Columns are permuted by act-order before they are grouped, and stay so in the file.
- A group's grid is fitted without its likely outliers: those weights without which the group's squared error, weighted
  by 1 / U_jj^2, would fall by more than the threshold, with a grid fitted to the others (leave one out).
- Scales and zero points of 16 rows of one group column are quantized to 3 bits between their own minimum and maximum.
- Where rows are so uneven that this loses one, or their range asks for it, groups have gptq's grids instead.
- Column by column, a weight whose squared error (w - q)^2 / U_jj^2 passes the threshold is an outlier: it keeps
  16 bits, leaves no error for the later columns, and replaces the dequantized weight.
- The threshold is tau * mean_j(var_rows(W_j) / U_jj^2), for each layer.

Bits a weight by the paper's count: b + (3 + 3) / group_size + 64 / (16 group_size) + 32 * share of outliers.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch

from spqfmt.errors import OptionError
from spqfmt.kernels.torch_arrays import TORCH_DTYPES, to_numpy
from spqfmt.quantize import embeddings
from spqfmt.quantize.base import MethodOptions, Weight
from spqfmt.quantize.calibrated import Block, Result
from spqfmt.quantize.checks import check_bits, check_damping
from spqfmt.quantize.feedback import Factor, factorize, sweep
from spqfmt.quantize.gptq import layer_notes
from spqfmt.quantize.grids import code_dtype
from spqfmt.quantize.leave_one_out import SMALLEST_SCALE, likely_outliers
from spqfmt.quantize.spqr_grids import Grids, loses_a_row, shifted, ways_to_store
from spqfmt.quantize.statistics import Hessian
from spqfmt.quantize.supergroups import STATISTICS_BITS, SUPERGROUP_ROWS
from spqfmt.schemes.base import Quantized
from spqfmt.schemes.grouped import Grouped
from spqfmt.schemes.outliers import Outliers

OUTLIER_BITS = 32
"""A value of 16 bits and a column of 16 bits, in the paper's count."""


class SpQR:
    """4 bits in groups of 16, threshold 0.2, damping 1 and act-order where not told otherwise."""

    name = "spqr"
    takes = frozenset({"bits", "group_size", "embedding_bits", "threshold", "damping", "act_order"})
    calibrated = True

    def check(self, options: MethodOptions) -> MethodOptions:
        """Return the options with defaults filled in."""
        bits, embedding_bits = check_bits(options, 4)
        group_size = 16 if options.group_size is None else options.group_size
        threshold = 0.2 if options.threshold is None else options.threshold
        if group_size < 1:
            raise OptionError("a group size is at least 1")
        if not threshold > 0:
            raise OptionError("the threshold of outliers is above 0; inf keeps none")
        return replace(
            options,
            bits=bits,
            group_size=group_size,
            embedding_bits=embedding_bits,
            threshold=threshold,
            damping=check_damping(options.damping, 1.0),
            act_order=options.act_order is not False,
        )

    def describe(self, weight: Weight, options: MethodOptions) -> str:
        """Say the bits, the group size and the threshold."""
        if weight.role != "linear":
            return embeddings.describe(weight, options)
        return f"{options.bits} bits per group of {options.group_size}, outliers from {options.threshold:g}"

    def quantize(self, weight: Weight, value: torch.Tensor, options: MethodOptions) -> Quantized:
        """Round embedding and head to nearest."""
        return embeddings.quantize(weight, value, options)

    def accumulator(self, n_columns: int, options: MethodOptions) -> Hessian:
        """Return what sums up the Hessian of the inputs."""
        return Hessian(n_columns)

    def quantize_block(self, block: Block, options: MethodOptions) -> Mapping[str, Result]:
        """Layer by layer; those with one input share the factor of its Hessian."""
        assert options.bits is not None
        assert options.group_size is not None
        assert options.threshold is not None
        assert options.damping is not None
        results = {}
        for site in block.sites:
            assert isinstance(site.statistics, Hessian)
            factor = factorize(
                site.statistics.matrix, options.damping, act_order=bool(options.act_order)
            ).here()
            shared: str | None = None
            for layer in site.layers:
                matrix = layer.matrix()
                grouped = quantize_matrix(
                    matrix, factor, options.bits, group_size=options.group_size, threshold=options.threshold
                )
                n_outliers = 0 if grouped.outliers is None else grouped.outliers.rows.size
                name = layer.weight.name
                notes = layer_notes(name, factor, matrix, options.group_size)
                bits = formula_bits(matrix.numel(), n_outliers, options.bits, options.group_size)
                if grouped.supergroup is None:
                    notes += (
                        f"{name}: its rows are too uneven for supergroups, each group has a scale of its own",
                    )
                    bits += matrix.numel() * own_bits(options.bits) / options.group_size
                results[name] = Result(
                    replace(grouped, shared_permutation=shared), formula_bits=bits, notes=notes
                )
                shared = shared or (name if factor.order is not None else None)
        return results


def formula_bits(n_weights: int, n_outliers: int, bits: int, group_size: int) -> float:
    """The paper's count for a tensor."""
    per_group = 2 * STATISTICS_BITS + 64 / SUPERGROUP_ROWS
    return n_weights * (bits + per_group / group_size) + OUTLIER_BITS * n_outliers


def own_bits(bits: int) -> float:
    """What a group with a scale and a zero point of its own takes more than its part of supergroups."""
    return 32 + bits - 2 * STATISTICS_BITS - 64 / SUPERGROUP_ROWS


def quantize_matrix(
    matrix: torch.Tensor, factor: Factor, bits: int, group_size: int, threshold: float
) -> Grouped:
    """SpQR of `matrix`, float32 [out, in]. `threshold` is tau; inf keeps no outliers."""
    stored = matrix if factor.order is None else matrix[:, factor.order]
    for grids in ways_to_store(matrix, bits):
        made, errors = _quantize_columns(
            stored, grids, factor, bits=bits, group_size=group_size, threshold=threshold
        )
        if grids.fits and not loses_a_row(errors, stored, bits, group_size):
            break
    return made


def _quantize_columns(
    matrix: torch.Tensor, grids: Grids, factor: Factor, bits: int, group_size: int, threshold: float
) -> tuple[Grouped, torch.Tensor]:
    """Quantize the columns of `matrix`, in the factor's order; and give the errors that `loses_a_row` takes."""
    rows, columns = matrix.shape
    work = shifted(matrix, -grids.shift).t().clone(memory_format=torch.contiguous_format)
    diagonal = factor.upper.diagonal()
    variance = work.var(1) if rows > 1 else torch.zeros(columns)
    limit = threshold * float((variance / diagonal.square()).mean())
    sparse = limit < float("inf") and limit > 0
    highest = float(2**bits - 1)
    narrow = TORCH_DTYPES[grids.outlier_dtype]

    codes = torch.empty(columns, rows, dtype=torch.uint8)
    outliers = torch.zeros(columns, rows, dtype=torch.bool)
    grid: list[tuple[torch.Tensor, torch.Tensor]] = []
    unit = 1 / work.abs().amax(0).clamp_min(SMALLEST_SCALE)
    squares, weight_squares = torch.zeros(rows), (work * unit).square_().sum(0)

    def fit(first: int, group: torch.Tensor) -> None:
        weights = group.t()
        if sparse and len(group) > 1:
            likely = likely_outliers(weights, diagonal[first : first + len(group)], bits, limit)
            others = (~likely).sum(1, keepdim=True).clamp_min(1)
            mean = torch.where(likely, 0.0, weights).sum(1, keepdim=True) / others
            weights = torch.where(likely, mean, weights)
        grid[:] = [grids.fit(weights)]

    def round_column(number: int, column: torch.Tensor) -> torch.Tensor:
        [(scale, zero)] = grid
        code = torch.round(column / scale.clamp_min(SMALLEST_SCALE) + zero).clamp_(0, highest)
        value = scale * (code - zero)
        if sparse:
            error = (column - value) / diagonal[number]
            outlier = error.square_() > limit
            if outlier.any():
                outliers[number] = outlier
                value = torch.where(outlier, column.to(narrow).float(), value)
                # Under an outlier any code will do; the one nearest to 0 is common, and cheap for the entropy coder.
                code = torch.where(outlier, torch.round(zero).clamp_(0, highest), code)
        codes[number] = code
        lost = (column - value).mul_(unit)
        squares.addcmul_(lost, lost)
        return value

    sweep(work, factor.upper, group_size, fit=fit, round_column=round_column)
    places = outliers.t().nonzero()
    kept = shifted(work.t()[places[:, 0], places[:, 1]], grids.shift[places[:, 0].numpy(), 0]).to(narrow)
    scales, zeros, supergroup = grids.stored()
    made = Grouped(
        codes=codes.t().contiguous().numpy(),
        code_dtype=code_dtype(bits),
        group_size=group_size,
        bits=bits,
        scale=scales,
        zero_point=zeros,
        supergroup=supergroup,
        permutation=None if factor.order is None else factor.order.numpy(),
        outliers=Outliers(places[:, 0].numpy(), places[:, 1].numpy(), to_numpy(kept), grids.outlier_dtype),
    )
    return made, (squares / weight_squares).nan_to_num_(0).sqrt_()


METHOD = SpQR()
