"""How long a calibrated pack would take on this machine, and in how much memory, before it is begun.

By the model's first block, run on one sample, and by what the method takes for small matrices. Reading and writing
files is not in it, nor what a size makes the method try again.
"""

from math import prod
from typing import NamedTuple

from spqfmt.calibration.engine import BATCH_TOKENS
from spqfmt.calibration.glance import Glance, glance
from spqfmt.importers.base import SourceModel
from spqfmt.packing.fit.bounds import is_spent
from spqfmt.packing.options import PackOptions
from spqfmt.packing.plan import PackPlan
from spqfmt.quantize.calibrated import CorrectingMethod, SearchingMethod, is_calibrated
from spqfmt.quantize.costs import costs_of
from spqfmt.quantize.ecq.effort import gradient_samples
from spqfmt.quantize.ecq.survey import SURVEY_SAMPLES

_PROCESS_BYTES = 500 << 20
"""What a process with torch and transformers has before it packs anything."""
_FACTOR_BYTES = 24
"""What an element of a Hessian takes while it is factored."""
_ACTIVATION_BYTES = 24
"""What an input of the widest layer takes for a token of a batch, with what else the block computes."""
_LAYER_BYTES = 24
"""What a weight takes while its matrix is quantized, by a whole pack of SmolLM2, whose embedding is its largest."""


class Projection(NamedTuple):
    """Seconds of running the model's blocks and of quantizing, and the largest resident set of the process."""

    running_seconds: float
    quantizing_seconds: float
    peak_bytes: int

    @property
    def seconds(self) -> float:
        """The seconds of both together."""
        return self.running_seconds + self.quantizing_seconds


def project(model: SourceModel, plan: PackPlan, options: PackOptions) -> Projection | None:
    """What the pack would take; None where the method needs no calibration, searches on the model, or has a device.

    Takes some seconds. Raises what a calibration raises: a model that cannot be run is refused here already.
    """
    method, samples = options.method, options.calibration.samples
    if not is_calibrated(method) or isinstance(method, SearchingMethod):
        return None
    if options.calibration.device != "cpu":
        return None
    treated = [t.weight for t in plan.tensors if t.treatment and t.source.tied_to is None]
    layers = {weight.name: weight for weight in treated if weight.role == "linear"}
    seen = glance(model, options.calibration, layers)
    if not seen.n_weights:
        return None
    n_blocks = sum(prod(weight.shape) for weight in layers.values()) / seen.n_weights
    corrects = options.calibration.sequential and isinstance(method, CorrectingMethod) and method.corrects
    costs = costs_of(method, options.method_options)
    n_tokens = samples * seen.sample_tokens
    # For inputs, and for outputs; to be corrected, both versions are run to each input in its turn.
    n_runs = samples * (2.0 + (len(seen.sites) + 1 if corrects else 0))
    quantizing = 0.0
    ends: list[tuple[int, ...]] = []
    for columns, rows in seen.sites:
        quantizing += n_blocks * costs.quantizing(sum(rows), columns)
        quantizing += n_blocks * costs.gathering((3 if corrects else 1) * n_tokens, columns)
    if options.fit is not None:
        # The survey. What it quantizes of each layer is in the costs: a method without a plan looks for one.
        backwards = min(samples, gradient_samples(options.method_options))
        few = max(min(SURVEY_SAMPLES, samples), backwards)
        n_runs += 2 * few
        for columns, _ in seen.sites:
            quantizing += n_blocks * costs.gathering(few * seen.sample_tokens, columns)
            quantizing += n_blocks * costs.factoring(columns)
        # There, and back with what backward takes for inputs alone.
        n_runs += 4 * backwards
        ends = [t.source.shape for t in plan.tensors if is_spent(t, options) and t.source.role != "linear"]
        quantizing += sum(costs.quantizing(*shape) for shape in ends)
    return Projection(
        running_seconds=n_blocks * n_runs * seen.sample_tokens * seen.token_seconds,
        quantizing_seconds=quantizing,
        peak_bytes=_peak_bytes(seen, n_tokens, 2 if corrects else 1, max(map(prod, ends), default=0)),
    )


def _peak_bytes(seen: Glance, n_tokens: int, n_versions: int, largest_end: int) -> int:
    """One block, what is known of its inputs, the hidden states, and the largest matrix while it is quantized.

    `largest_end`: weights of the larger of embedding and head, where they are quantized as layers are: beside no block.
    """
    squares = [columns**2 for columns, _ in seen.sites]
    weights = [columns * rows for columns, each in seen.sites for rows in each]
    # A sum, then a factor and, where codes are made better, a Hessian; the drift beside them.
    of_inputs = 4 * (1 + n_versions) * sum(squares)
    at_once = max(_FACTOR_BYTES * max(squares), _LAYER_BYTES * max(weights))
    block = n_versions * seen.block_bytes + 5 * sum(weights)
    states = n_versions * n_tokens * seen.token_bytes
    activations = _ACTIVATION_BYTES * min(n_tokens, BATCH_TOKENS) * max(columns for columns, _ in seen.sites)
    in_a_block = block + of_inputs + max(at_once, activations)
    return _PROCESS_BYTES + seen.outside_bytes + states + max(in_a_block, _LAYER_BYTES * largest_end)
