"""What a model takes beside its weights, from its config alone."""

from typing import Any

import torch

from spqfmt.models.config import text_config
from spqfmt.residency.model_plan import Activations, activations


def estimate(config: Any, dtype: torch.dtype, n_tokens: int, batch: int) -> Activations:
    """Estimate bytes from the config alone; sizes that a config does not have count as 0."""
    text = text_config(config)
    # Not as attributes: a config refuses to give one whose value differs from layer to layer.
    values, names = text.to_dict(), text.attribute_map
    return activations(
        lambda name: values.get(names.get(name, name)), dtype.itemsize, n_tokens=n_tokens, batch=batch
    )
