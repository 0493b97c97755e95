"""Method ecq: an even grid whose step follows from the wanted bits, for codes that are entropy-coded.

`weight = step * code * row_scale * column_scale`. Where other methods fix the number of codes and let the coder find
what is left, here each weight costs what it is worth: see grid.py, sweep.py and allocation.py for the three
choices, and decision 0014. The registry's METHOD knows no other tensors; the pipeline prepares one
that does, with a plan for each tensor and a budget for all.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from spqfmt.errors import OptionError
from spqfmt.quantize import embeddings
from spqfmt.quantize.base import MethodOptions, Weight, as_matrix
from spqfmt.quantize.calibrated import Block, Result, Site
from spqfmt.quantize.checks import BITS, KEEP, check_damping
from spqfmt.quantize.ecq.allocation import FEWEST_BITS, MOST_BITS, PATH_BITS, TensorPlan
from spqfmt.quantize.ecq.budget import Budget, NoBudget
from spqfmt.quantize.ecq.correction import corrected
from spqfmt.quantize.ecq.coupling import Coupling, choose_coupled
from spqfmt.quantize.ecq.effort import effort_of
from spqfmt.quantize.ecq.grid import (
    DAMPING,
    InputGrid,
    input_grid,
    plain_grid,
)
from spqfmt.quantize.ecq.survey import Surveyed, make_plans, survey_layer, survey_plain
from spqfmt.quantize.ecq.sweep import RowGrid, choose, to_uniform
from spqfmt.quantize.ecq.trellis import Trellis, choose_along
from spqfmt.quantize.statistics import Hessian
from spqfmt.schemes.base import Encoded, Quantized
from spqfmt.schemes.uniform import Uniform

DEFAULT_BITS = 4.0


@dataclass
class Ecq:
    """4 bits a weight where not told otherwise, embedding and head among them.

    `plans` are by tensor name. `by_rows`: no codes are stored column by column, see choose_layout.
    """

    name: str = "ecq"
    takes: frozenset[str] = frozenset(
        {"bits_per_weight", "embedding_bits", "damping", "gradients", "no_calibration", "effort", "trellis"}
    )
    calibrated: bool = True
    plans: Mapping[str, TensorPlan] = field(default_factory=dict)
    budget: Budget = field(default_factory=NoBudget)
    by_rows: bool = False
    corrects: bool = True

    def grade(self, options: MethodOptions) -> "Ecq":
        """The method without calibration, where that is asked for."""
        return replace(self, calibrated=False) if options.no_calibration else self

    def prepared(self, plans: Mapping[str, TensorPlan], budget: Budget, *, by_rows: bool) -> "Ecq":
        """Return the method for one pack, with its plans and budget."""
        return replace(self, plans=plans, budget=budget, by_rows=by_rows)

    def take_up(self, encoded: Mapping[str, Encoded]) -> None:
        """Tensors that an interrupted pack has quantized count too."""
        self.budget.take_up(encoded)

    @property
    def counted(self) -> object:
        """What the budget has counted so far, for another process."""
        return self.budget.counted

    def take_over(self, counted: object) -> None:
        """Go on where another process has stopped."""
        self.budget.take_over(counted)

    def check(self, options: MethodOptions) -> MethodOptions:
        """Return the options with defaults filled in. `bits_per_weight` is any number from 1 to 8."""
        bits = DEFAULT_BITS if options.bits_per_weight is None else options.bits_per_weight
        if not FEWEST_BITS <= bits <= MOST_BITS:
            raise OptionError(
                f"bits of ecq are any number from {FEWEST_BITS:g} to {MOST_BITS:g}, not {bits:g}"
            )
        if options.trellis and not PATH_BITS[0] <= bits <= PATH_BITS[1]:
            raise OptionError(
                f"--trellis is for {PATH_BITS[0]:g} to {PATH_BITS[1]:g} bits a weight, not {bits:g}"
            )
        if options.embedding_bits is not None and options.embedding_bits not in {*BITS, KEEP}:
            raise OptionError("embedding bits are from 2 to 8, or 16 to keep them")
        if options.no_calibration and (
            options.gradients or options.effort is not None or options.damping is not None
        ):
            raise OptionError(
                "--gradients, --effort and --damping need the calibration that --no-calibration leaves out"
            )
        effort, gradients = effort_of(options.effort), options.gradients
        if gradients is None:
            gradients = effort.gradients and not options.no_calibration
        return replace(
            options,
            bits_per_weight=bits,
            damping=check_damping(options.damping, DAMPING),
            gradients=gradients or None,
        )

    def describe(self, weight: Weight, options: MethodOptions) -> str:
        """Say what decides the step of a tensor."""
        how = "entropy-coded grid" if Trellis.of(weight, options) is None else "entropy-coded trellis"
        if weight.role == "linear":
            return f"{how}, bits by allocation"
        if options.embedding_bits is not None:
            return embeddings.describe(weight, options)
        return f"rows on an {how}, bits by allocation" if weight.role in {"embedding", "head"} else ""

    def quantize(self, weight: Weight, value: torch.Tensor, options: MethodOptions) -> Quantized:
        """Quantize a tensor alone: embedding and head, by what is known of them, and layers that nothing reaches."""
        if weight.role != "linear" and options.embedding_bits is not None:
            return embeddings.quantize(weight, value, options)
        matrix = as_matrix(weight, value)
        plan = self.plans.get(weight.name)
        plan = plan or _alone(survey_plain(weight.name, matrix, _bits(options), Trellis.of(weight, options)))
        grid, rows = plain_grid(matrix.shape[1]), RowGrid.of_norms(matrix)
        if plan.grid is not None and plan.gradients is not None:
            grid, rows = plan.grid, RowGrid.of_end(matrix, plan.gradients)

        def make(shift: float) -> Mapping[str, Uniform]:
            by_rows = self.by_rows or weight.role == "embedding"
            made = quantize_matrix(
                matrix, grid, rows, plan.step(shift), trellis=plan.trellis, by_rows=by_rows
            )
            return {weight.name: made}

        return self.budget.spend(make)[weight.name]

    def accumulator(self, n_columns: int, options: MethodOptions) -> Hessian:
        """Return what sums up the Hessian of the inputs."""
        return Hessian(n_columns)

    def quantize_block(self, block: Block, options: MethodOptions) -> Mapping[str, Result]:
        """All layers of the block at one shift; those with one input share its column scales."""
        sites = [_SiteWork.of(site, self.plans, options) for site in block.sites]

        def make(shift: float) -> Mapping[str, Uniform]:
            return {
                name: uniform
                for site in sites
                for name, uniform in site.quantize(shift, by_rows=self.by_rows).items()
            }

        made = self.budget.spend(make) if sites else {}
        notes = {layer.plan.name: (site.grid.note, *layer.notes) for site in sites for layer in site.layers}
        return {
            name: Result(uniform, notes=tuple(f"{name}: {note}" for note in notes[name] if note))
            for name, uniform in made.items()
        }


def quantize_matrix(
    matrix: torch.Tensor,
    grid: InputGrid,
    rows: RowGrid,
    step: np.float32,
    shared_column_scales: str | None = None,
    *,
    trellis: Trellis | None = None,
    coupling: Coupling | None = None,
    by_rows: bool = False,
) -> Uniform:
    """`matrix`, float32 [rows, columns], at one step; with `coupling` rows make up for each other's errors."""
    if trellis is not None:
        chosen = choose_along(matrix, grid, rows, step=step, trellis=trellis)
    else:
        coupled = None if coupling is None else choose_coupled(matrix, grid, rows, step, coupling=coupling)
        chosen = coupled or choose(matrix, grid, rows, step)
    return to_uniform(
        chosen,
        grid,
        rows,
        step=step,
        shared_column_scales=shared_column_scales,
        by_rows=by_rows,
        trellis_rows=None if trellis is None else trellis.rows,
        stacked_rows=None if trellis is None else trellis.stacked_rows,
    )


@dataclass(frozen=True)
class _LayerWork:
    plan: TensorPlan
    matrix: torch.Tensor
    rows: RowGrid
    coupling: Coupling | None
    is_too_small: bool
    """For the trellis that was asked for."""

    @property
    def notes(self) -> Iterator[str]:
        """What the user should know of its rows; nothing as a rule."""
        if self.rows.is_uneven:
            yield "its rows are too uneven for one step, each has a scale of its own"
        if self.is_too_small:
            yield "it has too few rows for a trellis"


@dataclass(frozen=True)
class _SiteWork:
    grid: InputGrid
    layers: tuple[_LayerWork, ...]

    @classmethod
    def of(cls, site: Site, plans: Mapping[str, TensorPlan], options: MethodOptions) -> "_SiteWork":
        assert isinstance(site.statistics, Hessian)
        assert options.damping is not None
        grid = input_grid(
            site.statistics.take(),
            options.damping,
            site.statistics.exponent,
            sweeps=effort_of(options.effort).sweeps,
        )
        layers = []
        for layer in site.layers:
            name, matrix = layer.weight.name, layer.matrix()
            plan = plans.get(name)
            plan = plan or _alone(
                survey_layer(
                    name,
                    matrix,
                    grid,
                    rate=_bits(options),
                    gradients=None,
                    n_sharing=len(site.layers),
                    trellis=Trellis.of(layer.weight, options),
                )
            )
            rows = RowGrid.of_layer(matrix, plan.gradients)
            if site.drift is not None:
                matrix = corrected(matrix, layer.module, site.drift, grid)
            # Rows with steps by their norms have errors that gradients do not weigh.
            knows = plan.moments is not None and not rows.is_uneven and grid.upper.size
            coupling = Coupling.of(plan.moments) if knows and plan.moments is not None else None
            is_too_small = bool(options.trellis) and plan.trellis is None
            layers.append(_LayerWork(plan, matrix, rows, coupling, is_too_small=is_too_small))
        return cls(grid, tuple(layers))

    def quantize(self, shift: float, *, by_rows: bool) -> Mapping[str, Uniform]:
        first = None
        made: dict[str, Uniform] = {}
        for layer in self.layers:
            name = layer.plan.name
            step = layer.plan.step(shift)
            made[name] = quantize_matrix(
                layer.matrix,
                self.grid,
                layer.rows,
                step=step,
                shared_column_scales=first,
                trellis=layer.plan.trellis,
                coupling=layer.coupling,
                by_rows=by_rows,
            )
            first = first or name
        return made


def _bits(options: MethodOptions) -> float:
    """Bits of a tensor without a plan: a pack whose budget is memory has plans for all, and no mean of bits."""
    assert options.bits_per_weight is not None
    return options.bits_per_weight


def _alone(surveyed: Surveyed) -> TensorPlan:
    """The plan of a tensor that shares its bits with no other."""
    [plan] = make_plans([surveyed], {}).values()
    return plan
