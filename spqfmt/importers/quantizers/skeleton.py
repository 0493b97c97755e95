"""Shapes that the weights of a model have by its config, for arrays that do not say their own."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any


def shape_in_model(config: Mapping[str, Any], name: str) -> tuple[int, ...] | None:
    """The shape of weight `name` in the model that transformers builds of a config.json; None where it builds none."""
    return _shapes(json.dumps(config, sort_keys=True, default=str)).get(name)


@functools.lru_cache(1)
def _shapes(config: str) -> Mapping[str, tuple[int, ...]]:
    # torch and transformers take seconds to import: not where arrays say their shapes themselves.
    import torch
    import transformers

    said = json.loads(config)
    try:
        names = said.get("architectures") or []
        of_class = getattr(transformers, str(names[0]) if names else "AutoModel", None)
        known = transformers.AutoConfig.for_model(said.pop("model_type"), **said)
        with torch.device("meta"):
            build = getattr(of_class, "_from_config", None) or transformers.AutoModel.from_config
            model = build(known)
    except Exception:  # noqa: BLE001  # whatever a config makes the library do, its shapes are then not known
        return {}
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}
