"""How tokens are chosen, and where an answer ends before the model says so."""

import math
from dataclasses import dataclass

from spqfmt.errors import OptionError

_LEAST_TEMPERATURE = 1e-4
"""Below it numbers of 32 bits overflow, and the likeliest token is the only one."""
_MOST_STOPS = 64
_MOST_OF_A_STOP = 256


@dataclass(frozen=True)
class Sampling:
    """How to choose tokens: the likeliest at `temperature` 0, else at random, repeatable by `seed`.

    `top_p` and `top_k` (0 for all tokens) stand before what the model's own settings say; None leaves it to these.
    `stop`: texts before which an answer ends.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        is_usual = math.isfinite(self.temperature) and self.temperature >= _LEAST_TEMPERATURE
        if self.temperature != 0 and not is_usual:
            raise OptionError(
                f"temperature {self.temperature}: give 0, or a number from {_LEAST_TEMPERATURE} up"
            )
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise OptionError(f"top_p {self.top_p}: give a number above 0, up to 1")
        if self.top_k is not None and self.top_k < 0:
            raise OptionError(f"top_k {self.top_k}: give a number of tokens, or 0 for all")
        if self.max_new_tokens < 1:
            raise OptionError(f"max_new_tokens {self.max_new_tokens}: give at least 1")
        if not 0 <= self.seed < 1 << 64:
            raise OptionError(f"seed {self.seed}: give a number from 0 to 2^64 - 1")
        if not all(self.stop):
            raise OptionError("an empty stop text; leave it out")
        if len(self.stop) > _MOST_STOPS or any(len(text) > _MOST_OF_A_STOP for text in self.stop):
            raise OptionError(f"stop: at most {_MOST_STOPS} texts of {_MOST_OF_A_STOP} characters")

    @property
    def longest_stop(self) -> int:
        """Characters of the longest stop text."""
        return max(map(len, self.stop), default=0)


class StopCut:
    """Passes on text up to the first stop text, and holds back what one may begin with."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.is_done = False

    def feed(self, text: str, *, is_last: bool = False) -> str:
        """What can be shown now that `text` has come."""
        if self.is_done:
            return ""
        text = self._held + text
        self._held = ""
        ends = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            self.is_done = True
            return text[: min(ends)]
        if is_last:
            return text
        n_held = max((self._overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        """How many characters at the end of `text` a stop text begins with."""
        return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
