"""How much time ecq takes to be better: what `--effort` names."""

from dataclasses import dataclass

from spqfmt.errors import OptionError


@dataclass(frozen=True)
class Effort:
    """What is done where the user does not say otherwise. `sweeps`: times that codes are made better (descent.py).

    `gradient_samples`: samples of the calibration for the backward pass, where there is one; some 500 tokens each.
    `couples`: whether rows make up for each other's errors, where gradients tell how (coupling.py).
    """

    samples: int
    sequential: bool
    gradients: bool
    sweeps: int
    gradient_samples: int = 8
    couples: bool = False


EFFORTS = {
    "fast": Effort(samples=32, sequential=False, gradients=False, sweeps=0),
    "normal": Effort(samples=32, sequential=True, gradients=False, sweeps=2),
    "best": Effort(samples=128, sequential=True, gradients=True, sweeps=6, gradient_samples=32, couples=True),
}
DEFAULT_EFFORT = "normal"


def effort_of(name: str | None) -> Effort:
    """The effort of this name, or the default. Raises OptionError for another one."""
    if name is not None and name not in EFFORTS:
        raise OptionError(f"effort is one of {', '.join(EFFORTS)}, not {name}")
    return EFFORTS[name or DEFAULT_EFFORT]
