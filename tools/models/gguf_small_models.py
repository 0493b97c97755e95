"""Small models of the architectures of GGUF that transformers has: their configs, and what is written of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gguf
import transformers
from gguf_conversions import (
    by_kind,
    clamped,
    cohere,
    corrected_parts,
    delta_net,
    delta_net_metadata,
    delta_net_parts,
    ernie4_5_moe,
    experts,
    gemma3,
    gemma4,
    gemma4_parts,
    glm4_moe,
    gpt_oss_parts,
    granite,
    granite_dense_parts,
    granite_hybrid,
    granite_hybrid_metadata,
    granite_hybrid_parts,
    granite_parts,
    lfm2,
    lfm2_moe,
    llama3_factors,
    llama4,
    llama4_parts,
    mamba,
    minimax,
    ministral3,
    nemotron,
    partly_turned,
    permuted,
    phi3,
    plus_one,
    shared,
    squeezed,
    state_space,
    unfused,
    yarn,
)

VOCABULARY, CONTEXT = 264, 128
_DENSE: Mapping[str, Any] = {
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
_GROUPED = {**_DENSE, "num_key_value_heads": 2}
_UNTIED = {**_GROUPED, "tie_word_embeddings": False}
_EXPERTS = {**_UNTIED, "num_experts_per_tok": 2}
_ROPE = {"rope_type": "default", "rope_theta": 20000.0}
_SCALED = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 1.0,
    "original_max_position_embeddings": 32,
}
_MULTIPLIERS = {
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


def _of(config_class: str, **options: Any) -> Callable[[], Any]:
    return lambda: getattr(transformers, config_class)(**options)


_HALF = {"rope_type": "default", "rope_theta": 20000.0, "partial_rotary_factor": 0.5}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 20000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
}
_MINISTRAL = {
    **{key: value for key, value in _YARN.items() if key != "truncate"},
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
_LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "long_factor": [1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
    "original_max_position_embeddings": 24,
}
_LLAMA4 = {
    **_EXPERTS,
    "num_experts_per_tok": 1,
    "head_dim": 16,
    "intermediate_size": 32,
    "intermediate_size_mlp": 96,
    "num_local_experts": 4,
    "interleave_moe_layer_step": 2,
    "rope_parameters": {"rope_type": "llama3", "rope_theta": 20000.0, **_SCALED},
}
_DELTA_NET = {
    **_GROUPED,
    "head_dim": 32,
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 20000.0,
        "partial_rotary_factor": 0.5,
        "mrope_section": [3, 3, 2],
        "mrope_interleaved": True,
    },
}
_WIDE = {
    **_DELTA_NET,
    "hidden_size": 256,
    "intermediate_size": 256,
    "head_dim": 64,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 16,
    "num_hidden_layers": 2,
}
_GEMMA4 = {
    **_GROUPED,
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
_GRANITE_HYBRID = {
    **_UNTIED,
    **_MULTIPLIERS,
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_n_groups": 2,
    "mamba_expand": 2,
    "shared_intermediate_size": 96,
    "position_embedding_type": None,
}
_FALCON = {**_DENSE, "ffn_hidden_size": 256, "intermediate_size": 256}
MODELS: Mapping[str, Small] = {
    "arcee": Small("arcee", _of("ArceeConfig", **_UNTIED, rope_parameters=_ROPE), change=permuted),
    "bloom": Small(
        "bloom",
        _of(
            "BloomConfig",
            vocab_size=VOCABULARY,
            hidden_size=64,
            n_layer=2,
            n_head=4,
            bos_token_id=None,
            eos_token_id=None,
        ),
        change=unfused,
    ),
    "cohere2": Small("cohere2", _of("Cohere2Config", **_GROUPED, head_dim=16, sliding_window=16), cohere),
    "command-r": Small("command-r", _of("CohereConfig", **_GROUPED), cohere),
    "exaone4": Small(
        "exaone4",
        _of(
            "Exaone4Config",
            **_UNTIED,
            layer_types=["full_attention"] * 4,
            sliding_window=None,
            sliding_window_pattern=None,
            rope_parameters=_ROPE,
        ),
    ),
    "exaone4_long": Small(
        "exaone4",
        _of(
            "Exaone4Config",
            **_UNTIED,
            head_dim=16,
            layer_types=["full_attention"] * 4,
            sliding_window=None,
            sliding_window_pattern=None,
            rope_parameters={"rope_type": "llama3", "rope_theta": 20000.0, **_SCALED},
        ),
        llama3_factors,
    ),
    "ernie4_5": Small("ernie4_5", _of("Ernie4_5Config", **_GROUPED, head_dim=16, rope_parameters=_ROPE)),
    "ernie4_5-moe": Small(
        "ernie4_5-moe",
        _of(
            "Ernie4_5_MoeConfig",
            **_GROUPED,
            moe_num_experts=4,
            moe_k=2,
            moe_intermediate_size=32,
            moe_num_shared_experts=2,
            moe_layer_start_index=1,
            moe_layer_end_index=3,
            moe_layer_interval=1,
            rope_parameters=_ROPE,
        ),
        ernie4_5_moe,
        split=corrected_parts,
    ),
    "falcon": Small("falcon", _of("FalconConfig", **_FALCON), change=by_kind),
    "falcon_groups": Small(
        "falcon",
        _of("FalconConfig", **_FALCON, num_kv_heads=2, new_decoder_architecture=True, rope_parameters=_ROPE),
        change=by_kind,
    ),
    "gemma3": Small(
        "gemma3",
        _of(
            "Gemma3TextConfig",
            **_GROUPED,
            head_dim=32,
            query_pre_attn_scalar=32,
            sliding_window=16,
            layer_types=["sliding_attention"] * 3 + ["sliding_attention"],
        ),
        gemma3,
        plus_one,
    ),
    "gemma3_deep": Small(
        "gemma3",
        _of(
            "Gemma3TextConfig",
            **{**_GROUPED, "num_hidden_layers": 7},
            head_dim=32,
            query_pre_attn_scalar=32,
            sliding_window=16,
        ),
        gemma3,
        plus_one,
    ),
    "gemma4": Small(
        "gemma4",
        _of(
            "Gemma4TextConfig",
            **_GEMMA4,
            num_kv_shared_layers=2,
            use_double_wide_mlp=True,
            hidden_size_per_layer_input=32,
            vocab_size_per_layer_input=VOCABULARY,
        ),
        gemma4,
        split=gemma4_parts,
    ),
    "gemma4_experts": Small(
        "gemma4",
        _of(
            "Gemma4TextConfig",
            **_GEMMA4,
            hidden_size_per_layer_input=0,
            attention_k_eq_v=True,
            num_global_key_value_heads=1,
            enable_moe_block=True,
            num_experts=4,
            top_k_experts=2,
            moe_intermediate_size=32,
        ),
        gemma4,
        split=gemma4_parts,
    ),
    "glm4": Small("glm4", _of("Glm4Config", **_UNTIED, head_dim=16, rope_parameters=_HALF), partly_turned),
    "glm4moe": Small(
        "glm4moe",
        _of(
            "Glm4MoeConfig",
            **_EXPERTS,
            head_dim=16,
            n_routed_experts=4,
            moe_intermediate_size=32,
            n_shared_experts=1,
            first_k_dense_replace=1,
            routed_scaling_factor=1.5,
            use_qk_norm=True,
            attention_bias=True,
            rope_parameters=_HALF,
        ),
        glm4_moe,
        split=corrected_parts,
    ),
    "gpt-oss": Small(
        "gpt-oss",
        _of(
            "GptOssConfig",
            **_EXPERTS,
            head_dim=16,
            num_local_experts=4,
            sliding_window=16,
            rope_parameters=_YARN,
        ),
        yarn,
        split=gpt_oss_parts,
    ),
    "gptneox": Small(
        "gptneox", _of("GPTNeoXConfig", **_DENSE, rope_parameters=_HALF), partly_turned, unfused
    ),
    "granite": Small(
        "granite", _of("GraniteConfig", **_UNTIED, **_MULTIPLIERS, rope_parameters=_ROPE), granite, permuted
    ),
    "granitemoe": Small(
        "granitemoe",
        _of("GraniteMoeConfig", **_EXPERTS, **_MULTIPLIERS, num_local_experts=4),
        granite,
        change=permuted,
        split=granite_parts,
    ),
    "granitehybrid": Small(
        "granitehybrid",
        _of("GraniteMoeHybridConfig", **_GRANITE_HYBRID, num_local_experts=4, num_experts_per_tok=2),
        granite_hybrid_metadata,
        change=granite_hybrid,
        split=granite_hybrid_parts,
    ),
    "granitehybrid_dense": Small(
        "granitehybrid",
        _of("GraniteMoeHybridConfig", **_GRANITE_HYBRID, num_local_experts=0, num_experts_per_tok=0),
        granite_hybrid_metadata,
        change=granite_hybrid,
        split=granite_dense_parts,
    ),
    "lfm2": Small(
        "lfm2",
        _of(
            "Lfm2Config",
            **_GROUPED,
            block_auto_adjust_ff_dim=False,
            layer_types=["conv", "full_attention", "conv", "full_attention"],
            rope_parameters=_ROPE,
        ),
        lfm2,
        squeezed,
    ),
    "lfm2moe": Small(
        "lfm2moe",
        _of(
            "Lfm2MoeConfig",
            **_GROUPED,
            layer_types=["conv", "full_attention", "conv", "full_attention"],
            num_dense_layers=1,
            moe_intermediate_size=32,
            num_experts=4,
            num_experts_per_tok=2,
            rope_parameters=_ROPE,
        ),
        metadata=lfm2_moe,
        change=squeezed,
        split=corrected_parts,
    ),
    "llama4": Small("llama4", _of("Llama4TextConfig", **_LLAMA4), llama4, split=llama4_parts),
    "mamba": Small(
        "mamba",
        _of(
            "MambaConfig",
            vocab_size=VOCABULARY,
            hidden_size=64,
            num_hidden_layers=2,
            time_step_rank=4,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        ),
        state_space,
        mamba,
    ),
    "minimax-m2": Small(
        "minimax-m2",
        _of("MiniMaxM2Config", **_EXPERTS, head_dim=16, num_local_experts=4, rope_parameters=_HALF),
        minimax,
        split=corrected_parts,
    ),
    "ministral3": Small(
        "mistral3",
        _of("Ministral3Config", **_GROUPED, head_dim=16, rope_parameters=_MINISTRAL),
        ministral3,
        permuted,
    ),
    "mistral3": Small(
        "mistral3",
        _of("MistralConfig", **_UNTIED, head_dim=16, sliding_window=None, rope_parameters=_ROPE),
        change=permuted,
    ),
    "mixtral": Small(
        "llama",
        _of("MixtralConfig", **_EXPERTS, num_local_experts=4, sliding_window=None, rope_parameters=_ROPE),
        change=permuted,
    ),
    "nemotron": Small(
        "nemotron", _of("NemotronConfig", **_UNTIED, rope_parameters=_HALF), partly_turned, nemotron
    ),
    "olmo": Small("olmo", _of("OlmoConfig", **_UNTIED, clip_qkv=1.5), clamped, permuted),
    "olmo2": Small("olmo2", _of("Olmo2Config", **_UNTIED, rope_parameters=_ROPE)),
    "olmoe": Small("olmoe", _of("OlmoeConfig", **{**_EXPERTS, "num_key_value_heads": 4}, num_experts=4)),
    "phi2": Small("phi2", _of("PhiConfig", **_UNTIED, rope_parameters=_HALF), partly_turned),
    "phi3": Small("phi3", _of("Phi3Config", **_UNTIED, original_max_position_embeddings=CONTEXT), phi3),
    "phi3_long": Small(
        "phi3",
        _of(
            "Phi3Config",
            **_UNTIED,
            sliding_window=20,
            original_max_position_embeddings=24,
            rope_parameters=_LONG,
        ),
        phi3,
    ),
    "qwen2moe": Small(
        "qwen2moe",
        _of(
            "Qwen2MoeConfig",
            **_EXPERTS,
            num_experts=4,
            moe_intermediate_size=32,
            shared_expert_intermediate_size=64,
        ),
        shared,
    ),
    "qwen3moe": Small(
        "qwen3moe",
        _of(
            "Qwen3MoeConfig",
            **_EXPERTS,
            head_dim=32,
            num_experts=4,
            moe_intermediate_size=32,
            norm_topk_prob=True,
            rope_parameters=_ROPE,
        ),
        experts,
    ),
    "qwen35": Small(
        "qwen35",
        _of("Qwen3_5TextConfig", **_DELTA_NET, tie_word_embeddings=True),
        metadata=delta_net_metadata,
        change=delta_net,
        split=delta_net_parts,
    ),
    "qwen35_wide": Small(
        "qwen35",
        _of("Qwen3_5TextConfig", **_WIDE),
        metadata=delta_net_metadata,
        change=delta_net,
        split=delta_net_parts,
    ),
    "qwen35moe": Small(
        "qwen35moe",
        _of(
            "Qwen3_5MoeTextConfig",
            **{**_DELTA_NET, "linear_num_value_heads": 4},
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=32,
            shared_expert_intermediate_size=64,
        ),
        metadata=delta_net_metadata,
        change=delta_net,
        split=delta_net_parts,
    ),
    "seed_oss": Small("seed_oss", _of("SeedOssConfig", **_UNTIED, head_dim=32, rope_parameters=_ROPE)),
    "smollm3": Small("smollm3", _of("SmolLM3Config", **_GROUPED, rope_parameters=_ROPE), change=permuted),
    "stablelm": Small(
        "stablelm", _of("StableLmConfig", **_UNTIED, use_qkv_bias=True, rope_parameters=_HALF), partly_turned
    ),
    "starcoder2": Small("starcoder2", _of("Starcoder2Config", **_GROUPED, rope_parameters=_ROPE)),
}
