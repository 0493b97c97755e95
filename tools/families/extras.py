"""What the default config of a family leaves out, or what does not follow from its names: by model type."""

from collections.abc import Mapping
from typing import Any

_HYBRID = {"layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"]}
_SECTIONS = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}}

EXTRAS: Mapping[str, Mapping[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3]},
    "bailing_hybrid": _HYBRID,
    "kimi_linear": _HYBRID,
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "mamba", "attention"]},
    "deepseek_v2": {"num_experts_per_tok": 2, "topk_group": 1, "n_group": 1},
    "dots1": {
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 2,
    },
    "esm": {"vocab_size": 320, "pad_token_id": 1, "mask_token_id": 300},
    "esmc": {"vocab_size": 320},
    "glm4v_moe_text": _SECTIONS,
    "glm4v_text": _SECTIONS,
    "glm_image_text": _SECTIONS,
    "glm_ocr_text": _SECTIONS,
    "gpt_neo": {"num_layers": 4, "attention_types": [[["global", "local"], 2]]},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "layoutlmv3": {"coordinate_size": 12, "shape_size": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "lilt": {"hidden_size": 96},
    "longcat_flash": {"head_dim": 8, "qk_rope_head_dim": 8},
    "ministral": {"head_dim": 16},
    "nemotron": {"head_dim": 16, "num_key_value_heads": 2},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "gemma3n_text": {"num_kv_shared_layers": 2},
    "perceiver": {
        "vocab_size": 320,
        "d_latents": 64,
        "d_model": 64,
        "num_latents": 8,
        "num_self_attends_per_block": 2,
        "num_blocks": 1,
    },
    "reformer": {"axial_pos_embds": False},
    "rwkv": {"rescale_every": 2},
    "xmod": {"default_language": "en_XX"},
    "zamba2": {"layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"]},
}
