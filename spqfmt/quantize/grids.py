"""Even grids for groups of weights: scale and zero point from the smallest and largest weight."""

import torch

CODE_DTYPES = {2: "u2", 3: "u4", 4: "u4"}
"""The narrowest dtype for codes of so many bits; u8 for more."""

F16_LARGEST, F16_SMALLEST = 65504.0, 2.0**-24


def code_dtype(bits: int) -> str:
    """The narrowest unsigned dtype for codes of so many bits."""
    return CODE_DTYPES.get(bits, "u8")


def fit_min_max(groups: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale (float16) and zero point (a whole number, float32) for groups [..., group] between minimum and maximum.

    0 is always within the range and has a code of its own. A scale is at least the smallest float16.
    """
    highest = 2**bits - 1
    low, high = groups.amin(-1).clamp_(max=0), groups.amax(-1).clamp_(min=0)
    scale = ((high - low) / highest).clamp_(F16_SMALLEST, F16_LARGEST).half()
    zero = torch.round(-low / scale.float()).clamp_(0, highest)
    return scale, zero
