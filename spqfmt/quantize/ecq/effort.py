"""How much time ecq takes to be better: what `--effort` names."""

from dataclasses import dataclass

from spqfmt.errors import OptionError


@dataclass(frozen=True)
class Effort:
    """What is done where the user does not say otherwise. `improves`: codes are made better after the feedback."""

    samples: int
    sequential: bool
    gradients: bool
    improves: bool


EFFORTS = {
    "fast": Effort(samples=32, sequential=False, gradients=False, improves=False),
    "normal": Effort(samples=128, sequential=False, gradients=False, improves=True),
    "best": Effort(samples=128, sequential=True, gradients=True, improves=True),
}
DEFAULT_EFFORT = "normal"


def effort_of(name: str | None) -> Effort:
    """The effort of this name, or the default. Raises OptionError for another one."""
    if name is not None and name not in EFFORTS:
        raise OptionError(f"effort is one of {', '.join(EFFORTS)}, not {name}")
    return EFFORTS[name or DEFAULT_EFFORT]
