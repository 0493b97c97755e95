"""Llama 3's rotary scaling from the factors a GGUF file carries.

llama.cpp stores what Llama 3 divides each rotary frequency by (`rope_freqs.weight`), transformers the four numbers it
comes from. For a frequency of wavelength w (transformers, `_compute_llama3_parameters`):

    1 / divisor = (1 - s) / factor + s,    s = clamp((original / w - low) / (high - low), 0, 1)

s is linear in 1 / w between its clamps, so a line through the unclamped points gives original / (high - low) and
low / (high - low). The three numbers only matter by their ratios: `original` is set to Llama 3's 8192.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from spqfmt.errors import ImporterError
from spqfmt.importers._gguf_reader import GgufTensor

_F32 = 0
_ORIGINAL = 8192  # must stay below the model's own context, which only a test model has shorter


def floats_of(tensor: GgufTensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The numbers of a small tensor of F32. Raises ImporterError for one of another type."""
    if tensor.ggml_type != _F32:
        raise ImporterError(f"{tensor.file.path}: tensor {tensor.name} is stored as {tensor.form}, not F32")
    return np.frombuffer(tensor.file.read(tensor.offset, tensor.n_bytes), dtype="<f4").astype(np.float64)


def step_rope(
    divisors: np.ndarray[Any, np.dtype[np.float64]], config: dict[str, Any]
) -> dict[str, Any] | None:
    """`rope_parameters` of Llama 4's rule, whose low and high factor are one: a frequency is divided by all or by 1.

    None for other divisors.
    """
    factor, n = float(divisors.max()), len(divisors)
    if factor == 1 or not set(divisors.tolist()) <= {1.0, factor} or np.any(np.diff(divisors) < 0):
        return None
    theta = config["rope_parameters"]["rope_theta"]
    wavelengths = 2 * np.pi * theta ** (np.arange(n) / n)
    n_whole = int((divisors == 1).sum())
    least = wavelengths[n_whole - 1] if n_whole else 0.0
    original = min(_ORIGINAL, config["max_position_embeddings"] // 2)
    # Between the two neighbours any limit is the same; the model's own is the original context.
    limit = (
        float(original)
        if least < original < wavelengths[n_whole]
        else float(least + wavelengths[n_whole]) / 2
    )
    return {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": factor,
        "low_freq_factor": original / limit,
        "high_freq_factor": original / limit,
        "original_max_position_embeddings": original,
    }


def rope_of_factors(factors: GgufTensor, config: dict[str, Any]) -> dict[str, Any]:
    """`rope_parameters` of a file's factors, by either rule. Raises ImporterError when they follow none."""
    divisors = floats_of(factors)
    return step_rope(divisors, config) or llama3_rope(factors.file.path, divisors, config)


def llama3_rope(
    path: Path, divisors: np.ndarray[Any, np.dtype[np.float64]], config: dict[str, Any]
) -> dict[str, Any]:
    """`rope_parameters` that give these divisors, one for each pair of a head's dimensions.

    Raises ImporterError when they do not follow Llama 3's rule.
    """
    theta, n = config["rope_parameters"]["rope_theta"], len(divisors)
    per_wavelength = theta ** (-np.arange(n) / n) / (2 * np.pi)
    factor = float(divisors.max())
    plain = {"rope_type": "default", "rope_theta": theta}
    if factor == 1 and divisors.min() == 1:
        return plain
    smooth = (1 / divisors - 1 / factor) / (1 - 1 / factor)
    between = (smooth > 1e-4) & (smooth < 1 - 1e-4)
    if n != config["head_dim"] // 2 or between.sum() < 2:
        raise ImporterError(
            f"{path}: rope_freqs.weight does not follow Llama 3's rule; import the Hugging Face folder"
        )
    slope, offset = np.polyfit(per_wavelength[between], smooth[between], 1)
    # slope = original / (high - low), offset = -low / (high - low)
    original = min(_ORIGINAL, config["max_position_embeddings"] // 2)
    spread = original / slope
    low = -offset * spread
    fitted = np.clip(slope * per_wavelength + offset, 0, 1)
    rebuilt = 1 / ((1 - fitted) / factor + fitted)
    if not np.allclose(rebuilt, divisors, rtol=1e-3):
        raise ImporterError(
            f"{path}: rope_freqs.weight does not follow Llama 3's rule; import the Hugging Face folder"
        )
    return {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": factor,
        "low_freq_factor": round(float(low), 4),
        "high_freq_factor": round(float(low + spread), 4),
        "original_max_position_embeddings": original,
    }
