"""Whether a checkpoint holds codes of another quantizer instead of weights."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from spqfmt.importers._quantizer_names import by_files, by_names
from spqfmt.wire import DTYPES

QUANTIZER_KEYS = ("quantization_config", "compression_config", "quantization")
"""Keys of a config.json that say how weights are quantized; the last is MLX's."""
_DEPTH = 3
"""How deep configs within configs are looked at."""
_LOADED_BY_BITSANDBYTES = ("load_in_4bit", "load_in_8bit", "_load_in_4bit", "_load_in_8bit")
_WEIGHTS = ("weight", "_packed", "_blocks", "_proj")
"""What the names of matrices end in; other integers are masks and positions."""
_FLOATS = frozenset({"f64", "f32", "f16", "bf16", "bool"})
_SMALL_FLOATS = frozenset(dtype for dtype in DTYPES if dtype.startswith("f")) - _FLOATS


def quantized_by(
    config: Mapping[str, Any],
    tensors: Iterable[tuple[str, tuple[int, ...], str]],
    files: Iterable[str] = (),
) -> str:
    """What has quantized the checkpoint, such as "gptq"; empty for one of floats.

    `tensors` are name, shape and dtype, `files` names of what lies beside them. The config is believed first: a folder
    of floats whose config speaks of a quantizer is not loaded as floats either.
    """
    return _by_config(config) or quantized_arrays(tensors) or by_files(files)


def quantized_arrays(
    tensors: Iterable[tuple[str, tuple[int, ...], str]], *, weights: frozenset[str] = _FLOATS
) -> str:
    """What has quantized tensors of these names, shapes and dtypes; empty where all are weights.

    `weights` are the dtypes that no codes have.
    """
    names, by_dtype = [], ""
    for name, shape, dtype in tensors:
        names.append(name)
        if len(shape) > 1 and dtype not in weights and name.rpartition(".")[2].endswith(_WEIGHTS):
            by_dtype = by_dtype or f"{name} is {dtype}"
    return by_names(names) or by_dtype


def are_decoded(tensors: Iterable[tuple[str, tuple[int, ...], str]], *, has_codes: bool) -> bool:
    """Whether tensors are weights that are decoded from codes of another quantizer, all of them."""
    return has_codes and not quantized_arrays(tensors)


def raw_codes(tensors: Iterable[tuple[str, tuple[int, ...], str]], *, has_codes: bool) -> str:
    """What has quantized tensors that no loader may take for weights, whatever a config says; empty for none.

    Small floats that nothing scales are numbers as they are, unless others beside them are decoded from codes.
    """
    return quantized_arrays(tensors, weights=_FLOATS if has_codes else _FLOATS | _SMALL_FLOATS)


def quantizer_of(config: Mapping[str, Any], keys: tuple[str, ...] = QUANTIZER_KEYS) -> object:
    """What a config.json says of a quantizer, in whichever place; None where it says nothing."""
    return next((place[key] for place in _places(config) for key in keys if place.get(key)), None)


def _places(config: Mapping[str, Any], depth: int = 0) -> Iterator[dict[str, Any]]:
    """The config, and those of the models that it is made of."""
    yield dict(config) if not isinstance(config, dict) else config
    for key, part in config.items():
        if key.endswith("config") and key not in QUANTIZER_KEYS and isinstance(part, dict) and depth < _DEPTH:
            yield from _places(part, depth + 1)


def without_quantizer(config: bytes) -> bytes | None:
    """A config.json that says nothing of a quantizer; None where this one does not, or is none."""
    try:
        found = json.loads(config)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or quantizer_of(found) is None:
        return None
    for place in _places(found):
        for key in QUANTIZER_KEYS:
            place.pop(key, None)
    return (json.dumps(found, indent=2, ensure_ascii=False) + "\n").encode()


def _by_config(config: Mapping[str, Any]) -> str:
    found = quantizer_of(config)
    if isinstance(found, list):
        found = next((one for one in found if one), None)
    if isinstance(found, str):
        return "" if found.lower() == "none" else found
    if isinstance(found, dict) and any(found.get(key) for key in _LOADED_BY_BITSANDBYTES):
        return "bitsandbytes"
    method = (found.get("quant_method") or found.get("quant_algo")) if isinstance(found, dict) else None
    return str(method or "config.json says so") if found else ""
