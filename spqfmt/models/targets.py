"""Where transformers puts the tensors of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from spqfmt.models.stacked_heads import whole_of


class Conversion(NamedTuple):
    """What becomes of a tensor on its way into `parameter` ("" for none).

    `converter` puts it together with others there, as one that matches `pattern`; None where it goes there unchanged,
    and for a matrix's stacks of heads (stacked_heads.py), which transformers does not put together.
    """

    parameter: str
    pattern: str | None = None
    converter: WeightConverter | None = None


class Targets:
    """Where transformers puts the tensors of a checkpoint."""

    def __init__(self, model: Any, names: Iterable[str]) -> None:
        """`names` are all of the checkpoint: what has been renamed decides how transformers renames the next."""
        self.mapping = get_model_conversion_mapping(model)
        self._renamings = [step for step in self.mapping if isinstance(step, WeightRenaming)]
        self._converters = [step for step in self.mapping if isinstance(step, WeightConverter)]
        self._prefix = model.base_model_prefix
        self._shapes = model.state_dict()
        self._names = frozenset(names := list(names))
        self._found = {name: self._find(name) for name in sorted(names, key=dot_natural_key)}

    def find(self, name: str) -> tuple[str, bool]:
        """Parameter that a tensor goes into ("" for none), and whether it goes there alone and unchanged."""
        found = self._found.get(name) or self._find(name)
        return found.parameter, bool(found.parameter) and found.pattern is None

    def conversions(self) -> Iterator[tuple[str, Conversion]]:
        """What becomes of each tensor that was named to begin with, in the order in which transformers takes them."""
        return ((name, found) for name, found in self._found.items() if found.parameter)

    def _find(self, name: str) -> Conversion:
        for renamings, converters in ((self._renamings, self._converters), ([], [])):
            renamed, pattern = rename_source_key(name, renamings, converters, self._prefix, self._shapes)
            if renamed in self._shapes:
                converter = next((c for c in converters if pattern in c.source_patterns), None)
                return Conversion(renamed, pattern, converter)
        # In a file that has the matrix itself, what has a stack's name is something else.
        whole = whole_of(name)
        is_stack = whole in self._shapes and whole not in self._names
        return Conversion(whole, name) if is_stack else Conversion("")

    def find_all(self, name: str) -> set[str]:
        """All parameters that a tensor goes into, such as those of queries, keys and values that it holds together."""
        target, alone = self.find(name)
        found = {target} - {""}
        if alone or not target:
            return found
        for converter in self._converters:
            parts = converter.target_patterns
            held = next((part for part in parts if part in target), None)
            if held is not None:
                found |= {target.replace(held, part) for part in parts} & self._shapes.keys()
        return found
