"""Who watches the bytes while tensors are quantized one after the other."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from spqfmt.schemes.base import Encoded
from spqfmt.schemes.uniform import Uniform

Make = Callable[[float], Mapping[str, Uniform]]
"""Quantizes some tensors at a shift; by name."""


class Budget(Protocol):
    """Gives each group of tensors its shift, so that all of them together take the wanted size."""

    def spend(self, make: Make) -> Mapping[str, Uniform]:
        """Call `make` until its result fits, and keep count of that result."""
        ...

    def take_up(self, encoded: Mapping[str, Encoded]) -> None:
        """Keep count of tensors that an interrupted pack has quantized."""
        ...

    @property
    def counted(self) -> object:
        """All that is counted so far, as plain data: what another process goes on with."""
        ...

    def take_over(self, counted: object) -> None:
        """Go on from what another process has counted, in place of what was counted here."""
        ...


@dataclass(frozen=True)
class NoBudget:
    """Every tensor at its base: there is no size to be hit."""

    def spend(self, make: Make) -> Mapping[str, Uniform]:
        """Make the layers once, at shift 0."""
        return make(0.0)

    def take_up(self, encoded: Mapping[str, Encoded]) -> None:
        """Do nothing: no bits are counted."""

    @property
    def counted(self) -> object:
        """Nothing is counted without a size."""
        return None

    def take_over(self, counted: object) -> None:
        """Do nothing: no bits are counted."""
