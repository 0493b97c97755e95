"""Small configs of any family that transformers has: the sizes of its default config made small by their names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from extras import EXTRAS
from transformers import PreTrainedConfig

VOCABULARY = 320
_FIRST_SPECIAL = 280
TEXT_IDS = range(8, _FIRST_SPECIAL)
"""Ids of tokens of text. Ids from there on stand for images, sounds and the like, each its own."""

# The first that matches the whole name decides; no size grows.
_SIZES = tuple(
    (re.compile(pattern), small)
    for pattern, small in (
        (r".*codebook_size", 256),
        (r".*vocab_size.*|num_embeddings|.*_vocab", VOCABULARY),
        (r"(encoder|decoder)_layers", 2),
        (r"num_kv_shared_layers", 2),
        (r".*(n_groups|state_size|d_state)", 8),
        (r"mamba_(num|n)_heads", 8),
        (r".*(layers|n_layer|num_blocks|depth|num_block)|.*num_layers_?.*", 4),
        (r"(qk_rope|partial_rotary).*|rotary_(ndims|dim)|qk_nope_head_dim", 8),
        (r".*head_dim|dim_head|.*_dim_head|d_kv|kv_channels|head_size|mamba_d_head", 16),
        (r".*_rank", 16),
        (r".*(key_value|kv|key)_heads?.*", 2),
        (r".*(heads?|n_head)", 4),
        (r".*(intermediate|ffn|feedforward|mlp|inner)_?(hidden_)?(size|dim|embed_dim)?|d_ff|d_inner", 96),
        (r".*experts_per_tok(en)?|.*top_?k(_experts)?|num_selected_experts|moe_k", 2),
        (r"n_group|num_expert_group", 2),
        (r"topk_group", 1),
        (r"(.*_)?(num|n)_(local_|routed_|total_)?experts", 4),
        (r".*(hidden_size|hidden_dim|d_model|n_embd|emb(ed)?_dim|embedding_(size|dim)|proj_dim)(_.*)?", 64),
        (r".*(project(ion)?_dim|output_dim|out_dim|hidden_channels|lru_width|classifier_proj_size)", 64),
        (r"dim|d_embed|model_dim|width|.*output_(hidden_)?size|conv_dim|decoder_layer_dim", 64),
        (r"max_source_positions", 64),
        (r".*max_(target_)?position.*|n_positions|n_ctx|context_length|max_seq.*|seq_length|max_length", 128),
        (r".*sliding_window.*|attention_window|local_attention|.*chunk_size", 8),
        (r".*layer_period|full_attention_interval|.*_every_n.*", 2),
        (r".*layer_offset", 1),
        (r"num_frames", 2),
    )
)
_TOKEN = re.compile(r".*_token_(id|index)|.*_token_ids?")
_FIRST = (
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "decoder_start_token_id",
    "sep_token_id",
    "cls_token_id",
)
_WIDTHS = re.compile(
    r".*(hidden_sizes|dims?|channels|embed_dim|neck_hidden_sizes|hidden_size|out_features_dims)"
)
_HEADS = re.compile(r".*heads")
_DEPTHS = re.compile(r".*depths?|.*num_blocks|.*layers|num_repeats|.*layer_blocks")


def tiny_config(config_class: type[PreTrainedConfig], extras: Mapping[str, Any]) -> Any:
    """A small config of the class, with `extras` for its fields. Raises what the class raises for it."""
    return _small(config_class(), {}, extras)


def _small(default: Any, specials: dict[str, int], extras: Mapping[str, Any]) -> Any:
    changed: dict[str, Any] = {}
    for field in fields(type(default)):
        raw = field.default if field.default_factory is MISSING else field.default_factory()
        value = vars(default).get(field.name)
        if isinstance(value, PreTrainedConfig):
            changed[field.name] = _small(value, specials, EXTRAS.get(value.model_type, {}))
        elif raw is not None and raw is not MISSING:
            small = _value(field.name, raw, specials)
            if small != raw:
                changed[field.name] = small
    if "kv_lora_rank" in changed and "num_key_value_heads" in changed:
        # Latent attention has no groups of heads.
        changed["num_key_value_heads"] = changed.get("num_attention_heads", 4)
    if isinstance(image := vars(default).get("image_size"), int | list | tuple):
        changed["image_size"] = _image(default, image)
    return type(default)(**changed | dict(extras))


def _value(name: str, value: Any, specials: dict[str, int]) -> Any:
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return _number(name, value, specials)
    if isinstance(value, (list, tuple)) and value and all(type(n) is int for n in value):
        return type(value)(_numbers(name, list(value), specials))
    return value


def _number(name: str, value: int, specials: dict[str, int]) -> int:
    if _TOKEN.fullmatch(name):
        if name in _FIRST:
            return min(value, _FIRST.index(name)) if value >= 0 else value
        return specials.setdefault(name, _FIRST_SPECIAL + len(specials)) if value >= 0 else value
    for pattern, small in _SIZES:
        if pattern.fullmatch(name):
            return min(value, small)
    return value


def _numbers(name: str, values: list[int], specials: dict[str, int]) -> list[int]:
    if _TOKEN.fullmatch(name):
        return [_number(name, values[0], specials)]
    if _HEADS.fullmatch(name):
        return [min(n, 2) for n in values]
    if _DEPTHS.fullmatch(name):
        return [min(n, 2) for n in values]
    if _WIDTHS.fullmatch(name):
        least = min(values)
        return [max(1, round(n * 16 / least)) if least > 16 else n for n in values]
    return [_number(name, n, specials) for n in values]


def _image(config: Any, size: Any) -> Any:
    """Four patches a side; 64 pixels where there are no patches."""
    patch = getattr(config, "patch_size", None)
    side = 4 * patch if isinstance(patch, int) and patch > 1 else 64
    if isinstance(size, (list, tuple)):
        return type(size)(min(n, side) for n in size)
    return min(size, side) if isinstance(size, int) else size
