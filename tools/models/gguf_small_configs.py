"""What the configs of the small models have in common, and what is said of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gguf
import transformers

VOCABULARY, CONTEXT = 264, 128
DENSE: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
GROUPED = {**DENSE, "num_key_value_heads": 2}
UNTIED = {**GROUPED, "tie_word_embeddings": False}
EXPERTS = {**UNTIED, "num_experts_per_tok": 2}
ROPE = {"rope_type": "default", "rope_theta": 20000.0}
SCALED = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 1.0,
    "original_max_position_embeddings": 32,
}
MULTIPLIERS = {
    "attention_multiplier": 0.2,
    "embedding_multiplier": 3.0,
    "logits_scaling": 2.0,
    "residual_multiplier": 0.5,
}


@dataclass(frozen=True)
class Small:
    """A model: its config, what its metadata have beside the usual, and what is done to its tensors."""

    architecture: str
    config: Callable[[], Any]
    metadata: Callable[[gguf.GGUFWriter, Any], None] = lambda writer, config: None
    change: Callable[[str, Any, Any], Any] = lambda name, value, config: value
    split: Callable[[str, Any], list[tuple[str, Any]]] = lambda name, value: [(name, value)]
    """What one tensor of the checkpoint becomes before it is named."""


def of(config_class: str, **options: Any) -> Callable[[], Any]:
    """What makes transformers' config of this class, with these options."""
    return lambda: getattr(transformers, config_class)(**options)


HALF = {"rope_type": "default", "rope_theta": 20000.0, "partial_rotary_factor": 0.5}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 20000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
}
MINISTRAL = {
    **{key: value for key, value in YARN.items() if key != "truncate"},
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "long_factor": [1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
    "original_max_position_embeddings": 24,
}
LLAMA4 = {
    **EXPERTS,
    "num_experts_per_tok": 1,
    "head_dim": 16,
    "intermediate_size": 32,
    "intermediate_size_mlp": 96,
    "num_local_experts": 4,
    "interleave_moe_layer_step": 2,
    "rope_parameters": {"rope_type": "llama3", "rope_theta": 20000.0, **SCALED},
}
HEAD, VALUES_OF_A_KEY = 32, 3
"""Columns of a head of a delta net, and its value heads for each key head."""
DELTA_NET = {
    **GROUPED,
    "head_dim": 32,
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "linear_key_head_dim": HEAD,
    "linear_value_head_dim": HEAD,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2 * VALUES_OF_A_KEY,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 20000.0,
        "partial_rotary_factor": 0.5,
        "mrope_section": [3, 3, 2],
        "mrope_interleaved": True,
    },
}
WIDE = {
    **DELTA_NET,
    "hidden_size": 256,
    "intermediate_size": 256,
    "head_dim": 64,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 16,
    "num_hidden_layers": 2,
}
GEMMA4 = {
    **GROUPED,
    "num_hidden_layers": 6,
    "head_dim": 16,
    "global_head_dim": 32,
    "sliding_window": 16,
    "final_logit_softcapping": 30.0,
    "layer_types": ["sliding_attention", "full_attention"] * 3,
    "rope_parameters": {
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 50000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 20000.0},
    },
}
GRANITE_HYBRID = {
    **UNTIED,
    **MULTIPLIERS,
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_n_groups": 2,
    "mamba_expand": 2,
    "shared_intermediate_size": 96,
    "position_embedding_type": None,
}
NEMOTRON_HYBRID = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": CONTEXT,
    "ssm_state_size": 16,
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "n_groups": 2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
FALCON = {**DENSE, "ffn_hidden_size": 256, "intermediate_size": 256}
KEYS = 32
"""Columns of a head's keys that are not turned, where keys come out of a latent vector."""
LATENT = {
    **EXPERTS,
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": KEYS,
    "qk_rope_head_dim": 16,
    "v_head_dim": 64,
    "n_routed_experts": 4,
    "n_shared_experts": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.5,
}
YARN_BY_LOG = {
    **{key: value for key, value in YARN.items() if key != "truncate"},
    "mscale": 0.7,
    "mscale_all_dim": 0.7,
}
