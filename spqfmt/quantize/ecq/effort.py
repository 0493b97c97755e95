"""How much time ecq takes to be better: what `--effort` names."""

from dataclasses import dataclass

from spqfmt.errors import OptionError
from spqfmt.quantize.base import MethodOptions


@dataclass(frozen=True)
class Effort:
    """What is done where the user does not say otherwise. `sweeps`: times that codes are made better (descent.py).

    `couples`: whether rows make up for each other's errors, where gradients tell how (coupling.py).
    """

    samples: int
    sequential: bool
    gradients: bool
    sweeps: int
    couples: bool = False


EFFORTS = {
    "fast": Effort(samples=32, sequential=False, gradients=False, sweeps=0),
    "normal": Effort(samples=32, sequential=True, gradients=False, sweeps=2),
    "best": Effort(samples=128, sequential=True, gradients=True, sweeps=6, couples=True),
}
DEFAULT_EFFORT = "normal"
GRADIENT_SAMPLES = 8
"""Samples of the calibration for the backward pass: some 4000 tokens."""
COUPLED_SAMPLES = 32
"""The same where all outputs of a layer are looked at together."""


def effort_of(name: str | None) -> Effort:
    """The effort of this name, or the default. Raises OptionError for another one."""
    if name is not None and name not in EFFORTS:
        raise OptionError(f"effort is one of {', '.join(EFFORTS)}, not {name}")
    return EFFORTS[name or DEFAULT_EFFORT]


def is_coupled(options: MethodOptions) -> bool:
    """Whether rows make up for each other's errors. Along a trellis, whose paths run down the rows, they cannot."""
    return bool(options.gradients) and effort_of(options.effort).couples and not options.trellis


def gradient_samples(options: MethodOptions) -> int:
    """Samples of the calibration for the backward pass; 0 without one."""
    if not options.gradients:
        return 0
    return COUPLED_SAMPLES if is_coupled(options) else GRADIENT_SAMPLES
