"""Whether a checkpoint holds codes of another quantizer instead of weights."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

QUANTIZER_KEYS = ("quantization_config", "compression_config", "quantization")
"""Of a config.json; the last is MLX's."""
_LOADED_BY_BITSANDBYTES = ("load_in_4bit", "load_in_8bit", "_load_in_4bit", "_load_in_8bit")
_BY_LAST_NAME = {
    "qweight": "gptq or awq",
    "weight_packed": "compressed-tensors",
    "weight_scale": "compressed-tensors or fp8",
    "weight_scale_inv": "fp8",
    "SCB": "bitsandbytes",
    "absmax": "bitsandbytes",
    "quant_map": "bitsandbytes",
    "W_q": "hqq",
}
_WEIGHTS = ("weight", "_packed", "_blocks", "_proj")
"""What the names of matrices end in; other integers are masks and positions."""
_FLOATS = frozenset({"f64", "f32", "f16", "bf16", "bool"})


def quantized_by(config: Mapping[str, Any], tensors: Iterable[tuple[str, tuple[int, ...], str]]) -> str:
    """What has quantized the checkpoint, such as "gptq"; empty for one of floats.

    `tensors` are name, shape and dtype. The config is believed first: a folder of floats whose config speaks of a
    quantizer is not loaded as floats either.
    """
    return _by_config(config) or quantized_arrays(tensors)


def quantized_arrays(tensors: Iterable[tuple[str, tuple[int, ...], str]]) -> str:
    """What has quantized tensors of these names, shapes and dtypes; empty where all are weights."""
    by_name = by_dtype = ""
    for name, shape, dtype in tensors:
        last = name.rpartition(".")[2]
        by_name = by_name or _BY_LAST_NAME.get(last, "")
        if len(shape) > 1 and dtype not in _FLOATS and last.endswith(_WEIGHTS):
            by_dtype = by_dtype or f"{name} is {dtype}"
    return by_name or by_dtype


def are_decoded(tensors: Iterable[tuple[str, tuple[int, ...], str]], *, has_codes: bool) -> bool:
    """Whether tensors are weights that are decoded from codes of another quantizer, all of them."""
    return has_codes and not quantized_arrays(tensors)


def quantizer_of(config: Mapping[str, Any]) -> object:
    """What a config.json says of a quantizer, in whichever place; None where it says nothing."""
    text = config.get("text_config")
    places = (config, text if isinstance(text, dict) else {})
    return next((place[key] for place in places for key in QUANTIZER_KEYS if place.get(key)), None)


def without_quantizer(config: bytes) -> bytes | None:
    """A config.json that says nothing of a quantizer; None where this one does not, or is none."""
    try:
        found = json.loads(config)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or quantizer_of(found) is None:
        return None
    for place in (found, found.get("text_config")):
        if isinstance(place, dict):
            for key in QUANTIZER_KEYS:
                place.pop(key, None)
    return (json.dumps(found, indent=2, ensure_ascii=False) + "\n").encode()


def _by_config(config: Mapping[str, Any]) -> str:
    found = quantizer_of(config)
    if not isinstance(found, dict):
        return ""
    if any(found.get(key) for key in _LOADED_BY_BITSANDBYTES):
        return "bitsandbytes"
    return str(found.get("quant_method") or found.get("quant_algo") or "config.json says so")
