"""A budget of bytes that is spent tensor by tensor, so that a file gets the size that was asked for.

Expected sizes come from the codes that a few rows of each tensor really get, and are corrected by the ratio of real to
expected bytes as tensors are done; the last ones are quantized again until the file is just below its size. Decision
0014.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from spqfmt.errors import OptionError
from spqfmt.pipeline.ledger import Ledger, StoredTensor, store
from spqfmt.pipeline.plan import PlannedTensor
from spqfmt.pipeline.records import tensor_record
from spqfmt.quantize.ecq.allocation import TensorPlan
from spqfmt.quantize.ecq.budget import Make
from spqfmt.schemes.base import Encoded, float_from_bits
from spqfmt.schemes.uniform import Uniform

_RANGE = 16.0
"""Shifts lie within so many octaves of 0."""
_BISECTIONS = 40
_RESOLUTION = 2.0**-10
"""Of a shift, in octaves: a file changes by less than a ten-thousandth."""
_CLOSE = 0.03
"""A result whose own size asks for a shift closer than this is kept: the tensors that follow make up for it."""
_TRIES = 3
_LAST_TRIES = 14
_NEAR = 0.001
"""The last tensors may leave this part of the file unused."""


@dataclass
class FileBudget:
    """Spends a file's bytes; see spqfmt.quantize.ecq.budget.Budget.

    `plans` are the tensors to be spent on, in the order in which they are quantized; `target` the file's bytes.
    """

    ledger: Ledger
    plans: Mapping[str, TensorPlan]
    target: int
    planned: Mapping[str, PlannedTensor]
    codec: str
    _real: float = 0.0
    _expected: float = 0.0
    _left: dict[str, TensorPlan] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._left = dict(self.plans)

    def spend(self, make: Make) -> Mapping[str, Uniform]:
        """Quantize until what is left suffices for the tensors that follow; the last ones until the file fits."""
        shift, tries = self._shift(self.ledger, self._left, self._ratio), 0
        low, high = -math.inf, math.inf  # too large at `low`, fits at `high`
        best: tuple[Mapping[str, Uniform], dict[str, StoredTensor]] | None = None
        while True:
            made = make(shift)
            stored = {name: self._store(name, uniform.encode()) for name, uniform in made.items()}
            tries += 1
            left = {name: plan for name, plan in self._left.items() if name not in made}
            if left:
                ratio = self._ratio_with(stored)
                after = self._shift(self.ledger.knowing(stored), left, ratio)
                if tries == _TRIES or abs(after - shift) < _CLOSE:
                    best = made, stored
                    break
                shift = (shift + after) / 2 if tries > 1 else self._shift(self.ledger, self._left, ratio)
                continue
            size = self.ledger.knowing(stored).file_bytes(self._bytes(left, 0.0, self._ratio))
            if size <= self.target:
                high, best = shift, (made, stored)
            else:
                low = shift
            n_weights = sum(self.plans[name].n_weights for name in made)
            step = 8 * (size - self.target * (1 - _NEAR / 2)) / n_weights
            finest = all(self._is_finest(name, shift) for name in made)
            enough = self.target * (1 - _NEAR) <= size <= self.target or (finest and size <= self.target)
            if enough or (tries >= _LAST_TRIES and best is not None) or tries >= 2 * _LAST_TRIES:
                break
            shift = _between(low, high, shift + max(-2.0, min(2.0, step)))
        if best is None:
            raise OptionError(
                f"{self.target} bytes are too few: the last tensors would need {size - self.target} more"
            )
        self._settle(best[1])
        return best[0]

    def take_up(self, encoded: Mapping[str, Encoded]) -> None:
        """Tensors that an interrupted pack has quantized."""
        self._settle({name: self._store(name, data) for name, data in encoded.items()})

    def _settle(self, stored: Mapping[str, StoredTensor]) -> None:
        for name, tensor in stored.items():
            plan = self._left.pop(name, None)
            if plan is not None:
                self._real += tensor.placed_bytes
                self._expected += _expected(plan, tensor)
        self.ledger = self.ledger.knowing(stored)

    @property
    def _ratio(self) -> float:
        return self._real / self._expected if self._expected else 1.0

    def _ratio_with(self, stored: Mapping[str, StoredTensor]) -> float:
        real = self._real + sum(tensor.placed_bytes for tensor in stored.values())
        expected = self._expected + sum(_expected(self.plans[name], t) for name, t in stored.items())
        return real / expected if expected else 1.0

    def _store(self, name: str, encoded: Encoded) -> StoredTensor:
        return store(tensor_record(self.planned[name].source, encoded, "ecq"), encoded, self.codec)

    def _is_finest(self, name: str, shift: float) -> bool:
        plan = self.plans[name]
        return plan.log_step(shift) > plan.base + shift

    @staticmethod
    def _bytes(left: Mapping[str, TensorPlan], shift: float, ratio: float) -> dict[str, float]:
        return {name: ratio * plan.n_bytes(shift) for name, plan in left.items()}

    def _shift(self, ledger: Ledger, left: Mapping[str, TensorPlan], ratio: float) -> float:
        """The finest shift at which the file is expected to fit, on a grid of _RESOLUTION."""
        low, high = -_RANGE, _RANGE
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            if ledger.file_bytes(self._bytes(left, middle, ratio)) > self.target:
                low = middle
            else:
                high = middle
        return math.ceil(high / _RESOLUTION) * _RESOLUTION


def _expected(plan: TensorPlan, stored: StoredTensor) -> float:
    """Bytes that were expected at the step that the tensor got."""
    parameters = stored.record["parameters"]
    assert isinstance(parameters, dict)
    step = float(float_from_bits(parameters["step"], "step"))
    return plan.n_weights * plan.curve.bits(math.log2(step)) / 8 + plan.side_bytes


def _between(low: float, high: float, wanted: float) -> float:
    """`wanted` where it lies well inside the bracket, else its middle."""
    if math.isinf(low) or math.isinf(high):
        return wanted
    margin = (high - low) / 16
    return wanted if low + margin < wanted < high - margin else (low + high) / 2
