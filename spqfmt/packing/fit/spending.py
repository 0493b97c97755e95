"""A budget of bytes that is spent tensor by tensor, so that a file, or its model, gets the size that was asked for.

Expected sizes come from the codes that a few rows of each tensor really get, and are corrected by the ratio of real to
expected bytes as tensors are done; the last ones are quantized again until it is just below its size. Decision
0014.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeAlias, cast

from spqfmt.errors import OptionError
from spqfmt.packing.fit.file_ledger import Ledger, placed_bytes, store
from spqfmt.packing.plan import PlannedTensor
from spqfmt.quantize.ecq.allocation import TensorPlan
from spqfmt.quantize.ecq.budget import Make
from spqfmt.records import TensorRecord
from spqfmt.schemes.base import Encoded, float_from_bits
from spqfmt.schemes.uniform import Uniform

_RANGE = 16.0
"""Shifts lie within so many octaves of 0."""
_BISECTIONS = 20
_RESOLUTION = 2.0**-10
"""Resolution of a shift, in octaves: a size changes by less than a ten-thousandth."""
_CLOSE = 0.03
"""A result whose own size asks for a shift closer than this is kept: the tensors that follow make up for it."""
_FEW = 1 / 64
"""The part of the weights that are left which is few: what these really take changes the shift of the others by less
than _CLOSE, so that it is not computed again for each of many tensors, which takes as long as there are tensors."""
_TRIES = 6
_LAST_TRIES = 20
_NEAR = 0.001
"""The last tensors may leave this part of what is there to be spent unused."""


@dataclass
class SizeBudget:
    """Spends the bytes of a ledger; see spqfmt.quantize.ecq.budget.Budget.

    `plans` are the tensors to be spent on, in the order in which they are quantized; `target` the bytes in all.
    """

    ledger: Ledger
    plans: Mapping[str, TensorPlan]
    target: int
    planned: Mapping[str, PlannedTensor]
    codec: str
    chunk_alignment: int
    notes: tuple[str, ...] = ()
    """What the user should know of the plans."""
    _real: float = 0.0
    _expected: float = 0.0
    _left: dict[str, TensorPlan] = field(init=False)
    """Those that count and are still to be quantized."""
    _n_left: int = field(init=False)
    """The number of their weights."""
    _foreseen: tuple[float, int] | None = None
    """The shift for all that is left, and how many weights that was; None: to be computed."""
    _slack: float = field(init=False)
    """Bytes that may be left."""

    def __post_init__(self) -> None:
        self._left = {name: plan for name, plan in self.plans.items() if self.ledger.counts(name)}
        self._n_left = sum(plan.n_weights for plan in self._left.values())
        self._slack = _NEAR * (self.target - self.ledger.n_bytes({}))

    def spend(self, make: Make) -> Mapping[str, Uniform]:
        """Quantize until what is left suffices for the tensors that follow; the last ones until all fits.

        Tensors that do not count need one try: they are as large as they get, and change nothing.
        """
        trial = self._try(make, self._foresee())
        if all(name in trial.stored for name in self._left):
            trial = self._spend_last(make, trial)
        elif sum(self.plans[n].n_weights for n in trial.stored if n in self._left) > _FEW * self._n_left:
            trial = self._spend_some(make, trial)
        self._settle(trial.stored)
        return trial.made

    def _foresee(self) -> float:
        """The shift at which the next tensors are tried: that for all that is left, or was left not long ago."""
        if self._foreseen is None:
            self._foreseen = self._shift(self.ledger, self._expecting(self._left)), self._n_left
        return self._foreseen[0]

    def _spend_some(self, make: Make, trial: "_Trial") -> "_Trial":
        """Try shifts until the tensors that follow can do with nearly the same."""
        left = {name: plan for name, plan in self._left.items() if name not in trial.stored}
        best, least = trial, math.inf
        for _ in range(_TRIES):
            after = self._shift(self.ledger.knowing(trial.stored), self._expecting(left, trial.stored))
            if abs(after - trial.shift) < least:
                best, least = trial, abs(after - trial.shift)
            if least < _CLOSE:
                break
            # The shift for all, with the ratio that these tensors really have.
            own = self._ratio(trial.stored, alone=True)
            these = {name: (self.plans[name], own) for name in trial.stored}
            trial = self._try(make, self._shift(self.ledger, self._expecting(left, trial.stored) | these))
        return best

    def _spend_last(self, make: Make, trial: "_Trial") -> "_Trial":
        """Try shifts until the sum is just below the target. Raises OptionError when no step does it."""
        low, high = -math.inf, math.inf  # too large at `low`, fits at `high`
        best: _Trial | None = None
        n_weights = sum(self.plans[name].n_weights for name in trial.stored if self.ledger.counts(name))
        for _ in range(_LAST_TRIES):
            size = self.ledger.knowing(trial.stored).n_bytes({})
            if size <= self.target:
                high, best = trial.shift, trial
                if size >= self.target - self._slack or self._is_finest(trial):
                    break
            else:
                low = trial.shift
            octaves = 8 * (size - self.target + self._slack / 2) / n_weights
            trial = self._try(make, _between(low, high, trial.shift + max(-2.0, min(2.0, octaves))))
        if best is None:
            raise OptionError(
                f"{self.target} {self.ledger.unit} are too few: the last tensors would need {size - self.target} more"
            )
        return best

    def take_up(self, encoded: Mapping[str, Encoded]) -> None:
        """Tensors that an interrupted pack has quantized, as many at once as were spent on at once."""
        self._foresee()
        self._settle({name: self._store(name, data) for name, data in encoded.items()})

    @property
    def counted(self) -> object:
        """What is stored so far and what was foreseen, for the process that goes on. Plans are the same in all."""
        return _Counted(
            ledger=self.ledger,
            real=self._real,
            expected=self._expected,
            left=tuple(self._left),
            foreseen=self._foreseen,
        )

    def take_over(self, counted: object) -> None:
        """Go on from what another process has counted."""
        found = cast("_Counted", counted)
        self.ledger, self._real, self._expected = found.ledger, found.real, found.expected
        self._left = {name: self.plans[name] for name in found.left}
        self._foreseen = found.foreseen
        self._n_left = sum(plan.n_weights for plan in self._left.values())

    def _settle(self, stored: Mapping[str, TensorRecord]) -> None:
        for name, tensor in stored.items():
            plan = self._left.pop(name, None)
            if plan is not None:
                self._n_left -= plan.n_weights
                self._real += placed_bytes(tensor, self.chunk_alignment)
                self._expected += _expected(plan, tensor)
        self.ledger = self.ledger.knowing(stored)
        if self._foreseen is not None and self._n_left < (1 - _FEW) * self._foreseen[1]:
            self._foreseen = None

    def _ratio(self, more: Mapping[str, TensorRecord], *, alone: bool = False) -> float:
        """Real bytes over expected ones of all tensors so far and `more`, or of `more` alone, where they count."""
        real, expected = (0.0, 0.0) if alone else (self._real, self._expected)
        for name, tensor in more.items():
            if self.ledger.counts(name):
                real += placed_bytes(tensor, self.chunk_alignment)
                expected += _expected(self.plans[name], tensor)
        return real / expected if expected else 1.0

    def _try(self, make: Make, shift: float) -> "_Trial":
        made = make(shift)
        return _Trial(
            shift,
            made,
            {name: self._store(name, self.planned[name].encode(uniform)) for name, uniform in made.items()},
        )

    def _store(self, name: str, encoded: Encoded) -> TensorRecord:
        return store(self.planned[name].record(encoded, "ecq"), encoded, self.codec, self.chunk_alignment)

    def _is_finest(self, trial: "_Trial") -> bool:
        plans = [self.plans[name] for name in trial.stored]
        return all(plan.log_step(trial.shift) > plan.base + trial.shift for plan in plans)

    def _expecting(
        self, left: Mapping[str, TensorPlan], more: Mapping[str, TensorRecord] = MappingProxyType({})
    ) -> "_Expecting":
        ratio = self._ratio(more)
        return {name: (plan, ratio) for name, plan in left.items()}

    def _shift(self, ledger: Ledger, expecting: "_Expecting") -> float:
        """The finest shift at which all is expected to fit, on a grid of _RESOLUTION."""
        low, high = -_RANGE, _RANGE
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            expected = {name: ratio * plan.n_bytes(middle) for name, (plan, ratio) in expecting.items()}
            if ledger.n_bytes(expected) > self.target:
                low = middle
            else:
                high = middle
        return math.ceil(high / _RESOLUTION) * _RESOLUTION


@dataclass(frozen=True)
class _Counted:
    """What is counted of a budget at some time; `left` are names."""

    ledger: Ledger
    real: float
    expected: float
    left: tuple[str, ...]
    foreseen: tuple[float, int] | None


@dataclass(frozen=True)
class _Trial:
    """What became of some tensors at a shift."""

    shift: float
    made: Mapping[str, Uniform]
    stored: dict[str, TensorRecord]


_Expecting: TypeAlias = dict[str, tuple[TensorPlan, float]]
"""Plans by name, each with the ratio that its expected bytes are multiplied by."""


def _expected(plan: TensorPlan, stored: TensorRecord) -> float:
    """Bytes that were expected at the step that the tensor got."""
    return plan.n_weights * plan.curve.bits(_log_step(stored)) / 8 + plan.side_bytes


def _log_step(stored: TensorRecord) -> float:
    return math.log2(float(float_from_bits(stored.parameters["step"], "step")))


def _between(low: float, high: float, wanted: float) -> float:
    """`wanted` where it lies well inside the bracket, else its middle."""
    if math.isinf(low) or math.isinf(high):
        return wanted
    margin = (high - low) / 16
    return wanted if low + margin < wanted < high - margin else (low + high) / 2
