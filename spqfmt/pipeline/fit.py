"""ecq's half of a pack that knows all tensors: a survey of their rates, and from it a plan for each and a budget."""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from spqfmt.calibration.engine import Engine
from spqfmt.calibration.gradients import output_gradients
from spqfmt.errors import OptionError
from spqfmt.importers.base import SourceModel
from spqfmt.kernels.torch_arrays import to_numpy
from spqfmt.pipeline.fit_target import BitsPerWeight, FileBytes
from spqfmt.pipeline.ledger import Ledger, StoredTensor, store
from spqfmt.pipeline.options import PackOptions
from spqfmt.pipeline.plan import PackPlan, PlannedTensor
from spqfmt.pipeline.records import tensor_record
from spqfmt.pipeline.spending import FileBudget
from spqfmt.quantize.base import as_matrix
from spqfmt.quantize.calibrated import is_calibrated
from spqfmt.quantize.ecq.allocation import FEWEST_BITS, MOST_BITS, TensorPlan
from spqfmt.quantize.ecq.method import Ecq
from spqfmt.quantize.ecq.survey import SURVEY_SAMPLES, Survey, Surveyed, make_plans, survey_plain
from spqfmt.schemes.dense import Dense

GRADIENT_SAMPLES = 8
"""Samples of the calibration for the backward pass: some 4000 tokens."""
EMBEDDING_EXTRA_BITS = 2.0
"""More than the layers get in the mean, decision 0014."""
_MARGIN = 0.02
"""Expected sizes may be wrong by this much, which counts where a wanted size is hardly possible."""
_METADATA = {"reserved": "".join(hashlib.sha256(bytes([i])).hexdigest() for i in range(9))}
"""In place of the metadata, which are written at the end: 300 bytes that do not compress."""

Stage = Callable[[str], None]


def fit(model: SourceModel, plan: PackPlan, options: PackOptions, stage: Stage) -> PackOptions:
    """Survey the model for `options.fit`, bits or a file's bytes. OptionError names what is possible.

    Returns options whose method has a plan for each tensor and the budget that it spends from.
    """
    method = options.method
    assert isinstance(method, Ecq)
    spent = {t.source.name: t for t in plan.tensors if _is_spent(t, options)}
    ledger = Ledger.begin(_segments(plan), plan.segment_alignment, model.assets, _METADATA).knowing(
        {t.source.name: _fixed(t, options) for t in plan.tensors if _is_fixed(t, spent)}
    )
    if not spent:
        raise OptionError("the source has no tensor that ecq quantizes")
    n_weights = sum(t.n_weights for t in spent.values())
    n_counted = sum(t.n_weights for t in plan.tensors if t.treatment)
    others = ledger.asset_bytes + sum(
        t.stored_bytes for n, t in ledger.known.items() if not t.record["method"]
    )
    asked = options.fit
    assert isinstance(asked, BitsPerWeight | FileBytes)
    target_bytes = asked.n_bytes if isinstance(asked, FileBytes) else int(asked.bits * n_counted / 8) + others
    rate = 8 * (target_bytes - ledger.file_bytes({})) / n_weights
    rate = min(MOST_BITS, max(FEWEST_BITS, rate))
    seen = _survey(model, spent, options, rate, stage)
    extra = {name: EMBEDDING_EXTRA_BITS for name, t in spent.items() if t.source.role != "linear"}
    plans = make_plans([seen[name] for name in spent], extra)
    smallest = _smallest(ledger, plans, n_weights)
    if target_bytes < smallest:
        raise OptionError(_too_small(asked, target_bytes, smallest, others, n_counted))
    budget = FileBudget(ledger, plans, target_bytes, spent, options.codec.codec)
    given = replace(options.method_options, bits_per_weight=round(8 * (target_bytes - others) / n_counted, 4))
    return replace(options, method=method.prepared(plans, budget), method_options=given)


def _is_spent(planned: PlannedTensor, options: PackOptions) -> bool:
    """Whether the tensor's size is the budget's to choose."""
    if not planned.treatment or planned.source.tied_to is not None:
        return False
    return planned.source.role == "linear" or options.method_options.embedding_bits is None


def _is_fixed(planned: PlannedTensor, spent: Mapping[str, PlannedTensor]) -> bool:
    return planned.source.tied_to is None and planned.source.name not in spent


def _fixed(planned: PlannedTensor, options: PackOptions) -> StoredTensor:
    """A tensor whose bytes no step decides: stored as it is, or an embedding at given bits."""
    source = planned.source
    if planned.treatment:
        value = options.method.quantize(planned.weight, source.load(), options.method_options)
        encoded, method = value.encode(), options.method.name
    else:
        encoded, method = Dense(to_numpy(source.load()), source.dtype).encode(), ""
    return store(tensor_record(source, encoded, method), encoded, options.codec.codec)


def _segments(plan: PackPlan) -> tuple[tuple[str, tuple[str, ...]], ...]:
    return tuple(
        (name, tuple(t.source.name for t in tensors if t.source.tied_to is None))
        for name, tensors in plan.segments
    )


def _survey(
    model: SourceModel, spent: Mapping[str, PlannedTensor], options: PackOptions, rate: float, stage: Stage
) -> dict[str, Surveyed]:
    """What can be known of every tensor, in the order of the file."""
    found: dict[str, Surveyed] = {}
    if is_calibrated(options.method):
        found = _survey_blocks(model, spent, options, rate, stage)
    for name, planned in spent.items():
        if name not in found:
            stage(f"{name}: looking at its weights")
            found[name] = survey_plain(name, as_matrix(planned.weight, planned.source.load()), rate)
    return found


def _survey_blocks(
    model: SourceModel, spent: Mapping[str, PlannedTensor], options: PackOptions, rate: float, stage: Stage
) -> dict[str, Surveyed]:
    wanted = {name: t.weight for name, t in spent.items() if t.source.role == "linear"}
    few = replace(
        options.calibration, samples=min(SURVEY_SAMPLES, options.calibration.samples), sequential=False
    )
    survey = Survey(rate, {})
    engine = Engine(
        model, survey, options.method_options, few, wanted, stage=lambda text: stage(f"survey, {text}")
    )
    if options.method_options.gradients:
        modules = {
            engine.shell.targets[name][0].removesuffix(".weight"): name
            for name in wanted
            if engine.shell.targets[name][1]
        }
        squares = output_gradients(
            engine.shell,
            engine.samples[:GRADIENT_SAMPLES],
            lambda block: [m.removeprefix(f"{block}.") for m in modules if m.startswith(f"{block}.")],
            seed=options.calibration.seed,
            stage=stage,
        )
        survey.gradients = {modules[module]: mean for module, mean in squares.items()}
    for _ in engine.run():
        pass
    return survey.seen


def _smallest(ledger: Ledger, plans: Mapping[str, TensorPlan], n_weights: int) -> int:
    """Bytes that always work: what is expected at the fewest bits, and a margin."""
    low, high = -32.0, 32.0
    for _ in range(40):
        middle = (low + high) / 2
        bits = sum(p.n_weights * p.curve.bits(p.log_step(middle)) for p in plans.values()) / n_weights
        low, high = (middle, high) if bits > FEWEST_BITS else (low, middle)
    expected = ledger.file_bytes({name: plan.n_bytes(high) for name, plan in plans.items()})
    known = ledger.file_bytes({})
    return math.ceil(expected + _MARGIN * (expected - known)) + 64 * len(plans)


def _too_small(asked: object, target: int, smallest: int, others: int, n_weights: int) -> str:
    # A survey at another rate sees other rates by a little, and the size that is named must work.
    smallest = math.ceil((1 + _MARGIN) * smallest)
    if isinstance(asked, BitsPerWeight):
        least = math.ceil(100 * 8 * (smallest - others) / n_weights) / 100
        return f"{asked.bits:g} bits a weight are too few for this model; {least:.2f} is the least that works"
    beside = asked.beside if isinstance(asked, FileBytes) else 0
    what = f"{target + beside} bytes{' of memory' if beside else ''}"
    return f"{what} are too few for this model; {smallest + beside} bytes is the smallest size that works"
