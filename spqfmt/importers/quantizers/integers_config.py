"""What the groups of a compressed-tensors config say of integers.

Which layers a group is for is told by names, classes and regular expressions, which may take for ever and are not
looked at: what the arrays of a layer are must be said by some group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spqfmt.errors import ImporterError

_WORD = 32


@dataclass(frozen=True)
class IntegerSettings:
    """What one group says of its weights."""

    bits: int
    strategy: str
    group_size: int | None
    is_symmetric: bool
    is_ordered: bool
    """Whether columns are grouped in an order of their own, which an array tells."""

    def packs(self, columns: int, words: int) -> bool:
        """Whether a row of so many columns is packed in so many words: no code lies across two."""
        return self.bits <= _WORD and -(-columns // (_WORD // self.bits)) == words

    def shares(self, shape: tuple[int, ...], lines: int, groups: int) -> bool:
        """Whether a weight of this shape has so many lines and groups of scales."""
        rows, columns = shape
        if self.strategy == "tensor":
            return lines == groups == 1
        if self.strategy == "channel":
            return lines == rows and groups == 1
        if self.strategy != "group" or self.group_size is None:
            return False
        return lines == rows and min(self.group_size, columns) * groups == columns

    @property
    def share(self) -> str:
        """What shares a scale, for messages."""
        return f"groups of {self.group_size}" if self.strategy == "group" else f"strategy {self.strategy}"


def integers_of(said: Mapping[str, Any], name: str) -> tuple[IntegerSettings, ...] | None:
    """What the groups say of integers; None where they say nothing of weights at all.

    Raises ImporterError, with the name of this tensor, for numbers that are none.
    """
    weights = [group.get("weights") for group in (said.get("config_groups") or {}).values()]
    schemes = [scheme for scheme in weights if isinstance(scheme, dict)]
    if not schemes:
        return None
    return tuple(_settings(scheme, name) for scheme in schemes if _value(scheme, "type", "int") == "int")


def _settings(scheme: Mapping[str, Any], name: str) -> IntegerSettings:
    bits = _number("num_bits", _value(scheme, "num_bits", 8), name)
    size = _value(scheme, "group_size", None)
    # The library says -1 for whole rows, and takes the strategy of the size where it has none.
    implied = "tensor" if size is None else "channel" if size == -1 else "group"
    strategy = str(_value(scheme, "strategy", implied))
    if strategy == "group" or size not in (None, -1):
        size = _number("group_size", size, name)
    return IntegerSettings(
        bits,
        strategy,
        size,
        is_symmetric=bool(_value(scheme, "symmetric", True)),
        is_ordered=strategy == "group" and _value(scheme, "actorder", False) in (True, "group", "dynamic"),
    )


def _value(scheme: Mapping[str, Any], key: str, default: object) -> object:
    found = scheme.get(key)
    return default if found is None else found


def _number(key: str, found: object, name: str) -> int:
    if type(found) is not int or found < 1:
        raise ImporterError(f"tensor {name!r}: config.json says {key} {found!r}, which is none")
    return found
