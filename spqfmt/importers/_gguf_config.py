"""A config of GGUF's metadata, by what transformers calls their keys."""

from __future__ import annotations

from collections.abc import Mapping

from spqfmt.importers._gguf_architectures import Architecture
from spqfmt.importers._gguf_known import NoModelError
from spqfmt.importers._gguf_models import Config, Facts
from spqfmt.importers._gguf_reader import GgufHeader


def config_of(facts: Facts, header: GgufHeader, architecture: Architecture) -> Config:
    """What the metadata say, by transformers' keys for them, then what the architecture has of its own.

    Raises ValueError for what they lack, NoModelError where transformers has no such model.
    """
    from transformers import CONFIG_MAPPING

    if architecture.model_type not in CONFIG_MAPPING:
        raise NoModelError(f"transformers here has no {architecture.model_type}")
    defaults = CONFIG_MAPPING[architecture.model_type]()
    known = {*defaults.to_dict(), *type(defaults).attribute_map}
    config: Config = {"model_type": architecture.model_type, "vocab_size": facts.vocabulary}
    for needed in ("context_length", "attention.head_count", "feed_forward_length"):
        if needed not in architecture.without:
            facts.count(needed)
    own = architecture.config(facts, {t.name: t for t in header.tensors})
    for key, names in _config_keys(facts.architecture).items():
        if f"{facts.architecture}.{key}" not in facts.metadata:
            continue
        name = next((name for name, is_own in names.items() if is_own or name in known), None)
        if name is not None and name not in own:
            config[name] = facts.number(key)
    if "num_key_value_heads" in known and "attention.head_count" not in architecture.without:
        config.setdefault("num_key_value_heads", facts.count("attention.head_count"))
    if not any(f"{facts.architecture}.{key}" in facts.metadata for key in _EPSILONS):
        raise ValueError(f"the metadata lacks {facts.architecture}.{_EPSILONS[0]}")
    return config | own


_EPSILONS = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon")


def _config_keys(architecture: str) -> dict[str, dict[str, bool]]:
    """What transformers calls GGUF's keys: for this architecture first, which is said, then for any."""
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    own = architecture.replace("-", "_")
    own = {"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe", "qwen3vlmoe": "qwen3_moe"}.get(own, own)
    tables = [own, *(name for name in GGUF_CONFIG_MAPPING if name not in {"general", "tokenizer", own})]
    keys: dict[str, dict[str, bool]] = {}
    for table in tables:
        for key, name in GGUF_CONFIG_MAPPING.get(table, {}).items():
            # Which dimensions turn depends on the architecture: `Architecture.config` says it.
            if isinstance(name, str) and not key.startswith("rope."):
                keys.setdefault(key, {}).setdefault(name, table == own)
    for key, names in _MORE_KEYS.items():
        for name in names:
            keys.setdefault(key, {}).setdefault(name, False)
    return keys


_MORE_KEYS: Mapping[str, tuple[str, ...]] = {
    "attention.key_length": ("head_dim",),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "layer_norm_epsilon", "norm_eps"),
    "attention.sliding_window": ("sliding_window",),
    "context_length": ("max_position_embeddings", "max_seq_len", "n_positions"),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size", "shared_intermediate_size"),
    "expert_count": ("num_local_experts", "num_experts", "n_routed_experts"),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "logit_scale": ("logit_scale", "logits_scaling"),
    "embedding_scale": ("embedding_multiplier",),
    "residual_scale": ("residual_multiplier",),
    "attention.scale": ("attention_multiplier",),
}
"""Keys of GGUF that transformers' tables do not have."""
