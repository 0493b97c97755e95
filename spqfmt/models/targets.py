"""Where transformers puts the tensors of a checkpoint."""

from __future__ import annotations

from typing import Any

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    rename_source_key,
)


class Targets:
    """Where transformers puts the tensors of a checkpoint."""

    def __init__(self, model: Any) -> None:
        self.mapping = get_model_conversion_mapping(model)
        self._renamings = [step for step in self.mapping if isinstance(step, WeightRenaming)]
        self._converters = [step for step in self.mapping if isinstance(step, WeightConverter)]
        self._prefix = model.base_model_prefix
        self._shapes = model.state_dict()

    def find(self, name: str) -> tuple[str, bool]:
        """Parameter that a tensor goes into ("" for none), and whether it goes there alone and unchanged."""
        for renamings, converters in ((self._renamings, self._converters), ([], [])):
            renamed, pattern = rename_source_key(name, renamings, converters, self._prefix, self._shapes)
            if renamed in self._shapes:
                return renamed, pattern is None
        return "", False
