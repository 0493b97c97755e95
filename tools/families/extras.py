"""What the default config of a family leaves out, or what does not follow from its names: by model type."""

from collections.abc import Mapping
from typing import Any

_HYBRID = {"layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"]}

EXTRAS: Mapping[str, Mapping[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3]},
    "bailing_hybrid": _HYBRID,
    "kimi_linear": _HYBRID,
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "mamba", "attention"]},
    "deepseek_v2": {"num_experts_per_tok": 2, "topk_group": 1, "n_group": 1},
    "gpt_neo": {"num_layers": 4, "attention_types": [[["global", "local"], 2]]},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "ministral": {"head_dim": 16},
    "nemotron": {"head_dim": 16, "num_key_value_heads": 2},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "gemma3n_text": {"num_kv_shared_layers": 2},
    "rwkv": {"rescale_every": 2},
    "xmod": {"default_language": "en_XX"},
    "zamba2": {"layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"]},
}
