"""Inputs that small models of any family run on, found by the names in their signatures and by trying."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from tiny_config import TEXT_IDS


def inputs_for(model: Any) -> dict[str, Any] | None:
    """Inputs on which the model runs, made by the names in its signature; None where none was found."""
    names = {
        name: parameter
        for name, parameter in inspect.signature(model.forward).parameters.items()
        if parameter.kind not in {parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL}
    }
    for given in candidates(model, names):
        if any(p.default is inspect.Parameter.empty and n not in given for n, p in names.items()):
            continue
        try:
            if all_finite(outputs(model, given)):
                return given
        except Exception:  # noqa: BLE001, S112 # the next shape is tried
            continue
    return None


def candidates(model: Any, names: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Guess inputs for a model, the likeliest first."""
    torch.manual_seed(1)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    config = model.config
    ids = torch.tensor([[TEXT_IDS[(i * 37 + 11 * k) % len(TEXT_IDS)] for i in range(12)] for k in range(2)])
    text: dict[str, Any] = {}
    if "input_ids" in names:
        text["input_ids"] = ids
    if "decoder_input_ids" in names:
        text["decoder_input_ids"] = ids[:, :6]
    if "bbox" in names:
        text["bbox"] = torch.arange(4).repeat(2, 12, 1)
    yield text
    if "inputs" in names:
        yield text | {"inputs": ids}
    if "attention_mask" in names:
        yield text | {"attention_mask": torch.ones_like(ids)}
    for image in _images(config, dtype):
        for key in ("pixel_values", "x", "hidden_states", "pixel_values_videos"):
            if key in names:
                yield {key: image}
                yield text | {key: image}
    for key in (
        "input_values",
        "input_features",
        "features",
        "hidden_states",
        "inputs_embeds",
        "inputs",
        "x",
    ):
        for sound in _sounds(config, dtype):
            if key in names:
                yield {key: sound}
                yield {k: v for k, v in text.items() if k != "input_ids"} | {key: sound}
                yield text | {key: sound}
                if "attention_mask" in names:
                    yield {
                        key: sound,
                        "attention_mask": torch.ones(sound.shape[0], sound.shape[-1], dtype=torch.long),
                    }
                    yield {key: sound, "attention_mask": torch.ones(sound.shape[:2], dtype=torch.long)}
    for grid in ("grid_thw", "image_grid_thw"):
        if grid in names:
            side = 4
            patch: int = getattr(config, "patch_size", 14)
            channels: int = getattr(config, "in_channels", None) or getattr(config, "num_channels", None) or 3
            depth: int = getattr(config, "temporal_patch_size", None) or 1
            patches = torch.randn(side * side, channels * depth * patch * patch, dtype=dtype)
            for key in ("hidden_states", "pixel_values"):
                if key in names:
                    yield {key: patches, grid: torch.tensor([[1, side, side]])}


def _images(config: Any, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    inner = [
        config,
        *(getattr(config, name, None) for name in ("vision_config", "backbone_config", "image_config")),
    ]
    sizes = []
    for part in inner:
        size = getattr(part, "image_size", None)
        if isinstance(size, int):
            sizes.append((size, size))
        elif isinstance(size, (list, tuple)) and len(size) == 2:
            sizes.append(tuple(size))
    channels = [n for n in (getattr(part, "num_channels", None) for part in inner) if isinstance(n, int)] or [
        3
    ]
    for height, width in dict.fromkeys([*sizes, (64, 64), (128, 128)]):
        image = torch.randn(1, channels[0], height, width, dtype=dtype)
        yield image
        yield image.repeat(1, 2, 1, 1).view(1, 2, channels[0], height, width)


def _sounds(config: Any, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    yield torch.randn(1, 4000, dtype=dtype)
    yield torch.randn(1, 1, 4000, dtype=dtype)
    bins = {
        getattr(config, name, None)
        for name in (
            "num_mel_bins",
            "input_feat_per_channel",
            "feature_size",
            "n_mels",
            "hidden_size",
            "d_model",
            "input_dim",
            "feat_size",
        )
    }
    for n in sorted(n for n in bins if isinstance(n, int)):
        length = 2 * getattr(config, "max_source_positions", 64)
        yield torch.randn(1, n, length, dtype=dtype)
        yield torch.randn(1, length, n, dtype=dtype)


def outputs(model: Any, given: Mapping[str, Any]) -> list[torch.Tensor]:
    """All float tensors that the model returns; nothing random differs from call to call."""
    torch.manual_seed(0)
    with torch.inference_mode():
        return list(_floats(model(**given)))


def _floats(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            yield value.clone()
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _floats(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _floats(inner)


def all_finite(found: list[torch.Tensor]) -> bool:
    """Whether there is something, and none of it NaN. Masked scores may be infinite."""
    return bool(found) and not any(bool(value.isnan().any()) for value in found)
