"""What a model is loaded as where nobody says: which dtype it computes in, and whether codes stay packed.

spec/decisions/0044 has the reasons.
"""

from typing import Any

import torch

from spqfmt.errors import OptionError
from spqfmt.kernels import products
from spqfmt.loaders.packed.options import Packing
from spqfmt.loaders.schemes.matrix import NAMES
from spqfmt.loaders.schemes.registry import keeps_up
from spqfmt.loaders.tensors import StoredModel, is_most, main_dtype, parse_dtype

FAST = "fast"
"""Asks for the dtype that the processor computes the model fastest in."""
_SLOW = 1.5
"""A dtype is slow where its products take so many times as long."""


def settle(
    stored: StoredModel, wanted: Packing | None, dtype: torch.dtype | str | None, where: torch.device
) -> tuple[Packing | None, torch.dtype]:
    """What packed weights are asked for, and the dtype. Raises OptionError for a dtype that is none."""
    own = main_dtype(stored.tensors.values())
    chosen = own if dtype is None or dtype == FAST else parse_dtype(dtype)
    # On a device codes take less of its memory in any case.
    keeps_up = where.type != "cpu" or _keep_up(stored)
    if wanted is not None and wanted.is_optional and not (chosen in NAMES and keeps_up):
        if wanted.int8_activations:
            raise OptionError("activations is for packed weights: give memory=, or packed=True")
        wanted = None
    if where.type == "cpu" and (dtype == FAST or (dtype is None and stored.is_coded)):
        # A ceiling is planned in the file's own dtype: another may take no more memory than that.
        chosen = fast_dtype(own, is_packed=wanted is not None and wanted.memory_bytes is None)
    return wanted, chosen


def fast_dtype(own: torch.dtype, *, is_packed: bool) -> torch.dtype:
    """The weights' own dtype, or another where the processor is slow with that.

    It takes no more memory: float32 is for packed weights, whose codes stay what they are.
    """
    others = (torch.bfloat16, torch.float32) if is_packed else (torch.bfloat16,)
    if own not in {torch.float16, torch.bfloat16} or own == others[-1]:
        return own
    seconds = {dtype: products.product_seconds(dtype) for dtype in (own, *others)}
    best = min(seconds, key=lambda dtype: seconds[dtype])
    return best if seconds[own] > _SLOW * seconds[best] else own


def computes_in(model: Any) -> str:
    """In a few words, what a loaded model computes in."""
    weights = "packed codes" if hasattr(model, "packed_weights") else "decoded weights"
    return f"{str(model.dtype).removeprefix('torch.')} from {weights}"


def _keep_up(stored: StoredModel) -> bool:
    """Whether most weights are codes that the CPU multiplies by at least as fast as by floats."""
    if stored.opened is None:
        return False
    records = stored.opened.tensors.values()
    return is_most((r.n_weights, keeps_up(r)) for r in records if r.tied_to is None)
