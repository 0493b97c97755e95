"""ecq's half of a pack that knows all tensors: a survey of their rates, and from it a plan for each and a budget."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from spqfmt.calibration.ends import Ends
from spqfmt.calibration.engine import Calibration
from spqfmt.calibration.gradients import output_gradients, watch_head
from spqfmt.calibration.relay import Relay
from spqfmt.errors import SpqError
from spqfmt.importers.base import SourceModel
from spqfmt.packing.fit.bounds import RoomToSpend
from spqfmt.packing.fit.spending import SizeBudget
from spqfmt.packing.options import PackOptions
from spqfmt.packing.plan import PlannedTensor
from spqfmt.packing.resume import check_alike
from spqfmt.processes import Alone, Processes, shared
from spqfmt.quantize.base import MethodOptions, as_matrix
from spqfmt.quantize.calibrated import is_calibrated
from spqfmt.quantize.ecq.allocation import FEWEST_BITS, MOST_BITS
from spqfmt.quantize.ecq.effort import GRADIENT_SAMPLES, effort_of, gradient_samples, is_coupled
from spqfmt.quantize.ecq.ends import EndUse, together
from spqfmt.quantize.ecq.grid import input_grid
from spqfmt.quantize.ecq.method import Ecq
from spqfmt.quantize.ecq.moments import TOKENS_A_ROW, OutputMoments
from spqfmt.quantize.ecq.survey import (
    SURVEY_SAMPLES,
    Survey,
    Surveyed,
    make_plans,
    survey_end,
    survey_plain,
)
from spqfmt.quantize.ecq.trellis import Trellis

EMBEDDING_EXTRA_BITS = 2.0
"""More than the layers get in the mean, where nothing is known of them; decision 0014."""
END_EXTRA_BITS = 1.0
"""The same where it is known what errors of their rows cost, but not beside those of layers; decision 0060."""
_NOT_COUNTED = -math.inf
"""Base of tensors that the size does not count: at every shift they get the most bits, for they cost nothing."""

Stage = Callable[[str], None]


def fit(
    model: SourceModel,
    room: RoomToSpend,
    options: PackOptions,
    stage: Stage,
    processes: Processes | None = None,
) -> tuple[PackOptions, SizeBudget]:
    """Survey the model for the size that leaves `room`.

    Returns options whose method has a plan for each tensor and the budget that it spends from, and that budget.
    `processes`: those that look at the model, each at its share of it, and call this at the same time. All have the
    same plans then, but the grids of embedding and head, which the first alone has.
    """
    processes = processes or Alone()
    method = options.method
    assert isinstance(method, Ecq)
    spent = room.spent
    rate = min(MOST_BITS, max(FEWEST_BITS, room.rate))
    seen, notes = _survey(model, spent, options, rate=rate, stage=stage, processes=processes)
    extra = {
        name: EMBEDDING_EXTRA_BITS if seen[name].grid is None else END_EXTRA_BITS
        for name, t in spent.items()
        if t.source.role != "linear"
    }
    plans = {
        name: plan if room.ledger.counts(name) else replace(plan, base=_NOT_COUNTED)
        for name, plan in make_plans([seen[name] for name in spent], extra).items()
    }
    # Means may differ in their last bits between kinds of processors.
    of_first = processes.exchange({name: replace(plan, grid=None) for name, plan in plans.items()})[0]
    if processes.number > 0:
        plans = of_first
    budget = SizeBudget(
        ledger=room.ledger,
        plans=plans,
        target=room.target_bytes,
        planned=spent,
        codec=options.codec.codec,
        chunk_alignment=options.chunk_alignment,
        notes=(*notes, *_without_trellis(seen, spent, options)),
    )
    assert options.fit is not None
    of_memory = options.fit.of_memory
    # Decoding columns to rows would take memory.
    method = method.prepared(plans, budget, by_rows=of_memory)
    # Memory is not spent on weights' bits alone: what they come to is not known before.
    bits = None if of_memory else round(8 * (room.target_bytes - room.other_bytes) / room.n_counted, 4)
    given = replace(options.method_options, bits_per_weight=bits)
    return replace(options, method=method, method_options=given), budget


def _without_trellis(
    seen: Mapping[str, Surveyed], spent: Mapping[str, PlannedTensor], options: PackOptions
) -> Iterator[str]:
    """Say of which tensors none was of use; those of a block say it themselves."""
    if not options.method_options.trellis:
        return
    for name, planned in spent.items():
        is_of_block = planned.source.role == "linear" and is_calibrated(options.method)
        if seen[name].trellis is None and not is_of_block:
            yield f"{name}: it has too few rows for a trellis"


def _survey(
    model: SourceModel,
    spent: Mapping[str, PlannedTensor],
    options: PackOptions,
    *,
    rate: float,
    stage: Stage,
    processes: Processes,
) -> tuple[dict[str, Surveyed], tuple[str, ...]]:
    """What can be known of every tensor, and what the user should know of it."""
    found: dict[str, Surveyed] = {}
    notes: tuple[str, ...] = ()
    if is_calibrated(options.method):
        own = _survey_blocks(model, spent, options, rate=rate, stage=stage, processes=processes)
        for of_one, said in processes.exchange(own):
            found, notes = found | of_one, notes + said
    left = [name for name in spent if name not in found]

    def look(at: int) -> Surveyed:
        planned = spent[left[at]]
        stage(f"{left[at]}: looking at its weights")
        matrix = as_matrix(planned.weight, planned.source.load())
        return survey_plain(left[at], matrix, rate, Trellis.of(planned.weight, options.method_options))

    return found | dict(zip(left, shared(processes, len(left), look), strict=True)), notes


def _survey_blocks(
    model: SourceModel,
    spent: Mapping[str, PlannedTensor],
    options: PackOptions,
    *,
    rate: float,
    stage: Stage,
    processes: Processes,
) -> tuple[dict[str, Surveyed], tuple[str, ...]]:
    """What this process sees: its share of the blocks and, as the last one, what stands around them; with notes."""
    wanted = {name: t.weight for name, t in spent.items() if t.source.role == "linear"}
    n_backwards = gradient_samples(options.method_options)
    n_samples = min(max(SURVEY_SAMPLES, n_backwards), options.calibration.samples)
    few = replace(options.calibration, samples=n_samples, sequential=False)
    survey = Survey(rate, {})
    engine = Calibration(
        source=model,
        method=survey,
        method_options=options.method_options,
        options=few,
        wanted=wanted,
        stage=lambda text: stage(f"survey, {text}"),
    )
    check_alike({"compute_dtype": str(engine.shell.dtype)}, processes)
    is_last = processes.number + 1 == processes.size
    has_ends = is_last and any(t.source.role != "linear" for t in spent.values())
    ends = Ends(engine.shell.model) if has_ends else None
    if options.method_options.gradients and is_last:
        modules = {
            engine.shell.targets[name][0].removesuffix(".weight"): name
            for name in wanted
            if engine.shell.targets[name][1]
        }
        samples = engine.samples[:n_backwards]
        found = output_gradients(
            engine.shell,
            samples,
            lambda block: [m.removeprefix(f"{block}.") for m in modules if m.startswith(f"{block}.")],
            seed=options.calibration.seed,
            ends=ends,
            most_rows=samples.numel() // TOKENS_A_ROW if is_coupled(options.method_options) else 0,
            stage=stage,
        )
        survey.gradients = {modules[m]: g.mean for m, g in found.items() if g.mean is not None}
        survey.moments = {
            modules[m]: OutputMoments(g.moments, g.n_tokens)
            for m, g in found.items()
            if g.moments is not None
        }
    survey.gradients, survey.moments = processes.exchange((survey.gradients, survey.moments))[-1]
    looks_behind = ends is not None and ends.states is None
    for _ in Relay(engine, options.method_options, processes).run(to_the_end=looks_behind):
        pass
    if ends is None:
        return survey.seen, ()
    if looks_behind:
        stage("survey, head")
        try:
            watch_head(engine.shell, engine.samples[:GRADIENT_SAMPLES], engine.blocks, ends)
        except SpqError as error:
            # The blocks of a model can be quantized without its head, which may not be in the source.
            return survey.seen, (f"head and embedding are quantized by the norms of their rows: {error}",)
    return survey.seen | _survey_ends(spent, engine, ends, options=options.method_options, rate=rate), ()


def _survey_ends(
    spent: Mapping[str, PlannedTensor], engine: Calibration, ends: Ends, options: MethodOptions, rate: float
) -> dict[str, Surveyed]:
    """Embedding and head, where it is known what errors of their rows cost."""
    found: dict[str, Surveyed] = {}
    assert options.damping is not None
    for name, planned in spent.items():
        target, alone = engine.shell.targets[name]
        if planned.source.role == "linear" or not alone:
            continue
        known = together(list(_uses(target, ends)))
        if known is None:
            continue
        matrix = as_matrix(planned.weight, planned.source.load())
        if tuple(matrix.shape) == (len(known[1]), len(known[0])):
            grid = input_grid(known[0], options.damping, sweeps=effort_of(options.effort).sweeps)
            found[name] = survey_end(
                name,
                matrix,
                grid,
                rate=rate,
                costs=known[1],
                are_weighed=ends.gradients is not None,
                trellis=Trellis.of(planned.weight, options),
            )
    return found


def _uses(parameter: str, ends: Ends) -> Iterator[EndUse]:
    """What the model does with a parameter: it multiplies states with it, or looks it up, or both."""
    is_looked_up = parameter == ends.embedding_name
    is_multiplied = parameter == ends.head_name or (is_looked_up and ends.is_tied)
    states, gradients = ends.states, ends.gradients
    if is_multiplied and states is not None and ends.curvatures is not None and not states.exponent:
        yield EndUse(states.matrix, ends.curvatures)
    if is_looked_up and gradients is not None and ends.looked_up is not None and not gradients.exponent:
        yield EndUse(gradients.matrix * ends.scale**2, ends.looked_up)
