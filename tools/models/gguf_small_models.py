"""Small models of the architectures of GGUF that transformers has: their configs, and what is written of them."""

from __future__ import annotations

from collections.abc import Mapping

from gguf_conversions import (
    by_kind,
    nemotron,
    permuted,
    plus_one,
    unfused,
)
from gguf_metadata import (
    clamped,
    cohere,
    encoder_decoder,
    gemma3,
    granite,
    llama3_factors,
    ministral3,
    partly_turned,
    phi3,
    places,
)
from gguf_small_configs import (
    CONTEXT,
    DENSE,
    FALCON,
    GROUPED,
    HALF,
    LONG,
    MINISTRAL,
    MULTIPLIERS,
    ROPE,
    SCALED,
    UNTIED,
    VOCABULARY,
    Small,
    of,
)
from gguf_small_mixtures import MIXTURES

__all__ = ["CONTEXT", "MODELS", "VOCABULARY"]
_T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 64,
    "d_kv": 32,
    "d_ff": 96,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 2,
    "relative_attention_num_buckets": 8,
    "bos_token_id": None,
    "decoder_start_token_id": 0,
}
MODELS: Mapping[str, Small] = {
    "arcee": Small("arcee", of("ArceeConfig", **UNTIED, rope_parameters=ROPE), change=permuted),
    "bloom": Small(
        "bloom",
        of(
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
    "cohere2": Small("cohere2", of("Cohere2Config", **GROUPED, head_dim=16, sliding_window=16), cohere),
    "command-r": Small("command-r", of("CohereConfig", **GROUPED), cohere),
    "exaone4": Small(
        "exaone4",
        of(
            "Exaone4Config",
            **UNTIED,
            layer_types=["full_attention"] * 4,
            sliding_window=None,
            sliding_window_pattern=None,
            rope_parameters=ROPE,
        ),
    ),
    "exaone4_long": Small(
        "exaone4",
        of(
            "Exaone4Config",
            **UNTIED,
            head_dim=16,
            layer_types=["full_attention"] * 4,
            sliding_window=None,
            sliding_window_pattern=None,
            rope_parameters={"rope_type": "llama3", "rope_theta": 20000.0, **SCALED},
        ),
        llama3_factors,
    ),
    "ernie4_5": Small("ernie4_5", of("Ernie4_5Config", **GROUPED, head_dim=16, rope_parameters=ROPE)),
    "falcon": Small("falcon", of("FalconConfig", **FALCON), change=by_kind),
    "falcon_groups": Small(
        "falcon",
        of("FalconConfig", **FALCON, num_kv_heads=2, new_decoder_architecture=True, rope_parameters=ROPE),
        change=by_kind,
    ),
    "gemma3": Small(
        "gemma3",
        of(
            "Gemma3TextConfig",
            **GROUPED,
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
        of(
            "Gemma3TextConfig",
            **{**GROUPED, "num_hidden_layers": 7},
            head_dim=32,
            query_pre_attn_scalar=32,
            sliding_window=16,
        ),
        gemma3,
        plus_one,
    ),
    "glm4": Small("glm4", of("Glm4Config", **UNTIED, head_dim=16, rope_parameters=HALF), partly_turned),
    "gptneox": Small("gptneox", of("GPTNeoXConfig", **DENSE, rope_parameters=HALF), partly_turned, unfused),
    "granite": Small(
        "granite", of("GraniteConfig", **UNTIED, **MULTIPLIERS, rope_parameters=ROPE), granite, permuted
    ),
    "ministral3": Small(
        "mistral3",
        of("Ministral3Config", **GROUPED, head_dim=16, rope_parameters=MINISTRAL),
        ministral3,
        permuted,
    ),
    "mistral3": Small(
        "mistral3",
        of("MistralConfig", **UNTIED, head_dim=16, sliding_window=None, rope_parameters=ROPE),
        change=permuted,
    ),
    "nemotron": Small(
        "nemotron", of("NemotronConfig", **UNTIED, rope_parameters=HALF), partly_turned, nemotron
    ),
    "olmo": Small("olmo", of("OlmoConfig", **UNTIED, clip_qkv=1.5), clamped, permuted),
    "olmo2": Small("olmo2", of("Olmo2Config", **UNTIED, rope_parameters=ROPE)),
    "phi2": Small("phi2", of("PhiConfig", **UNTIED, rope_parameters=HALF), partly_turned),
    "phi3": Small("phi3", of("Phi3Config", **UNTIED, original_max_position_embeddings=CONTEXT), phi3),
    "phi3_long": Small(
        "phi3",
        of(
            "Phi3Config",
            **UNTIED,
            sliding_window=20,
            original_max_position_embeddings=24,
            rope_parameters=LONG,
        ),
        phi3,
    ),
    "hunyuan-dense": Small(
        "hunyuan-dense", of("HunYuanDenseV1Config", **GROUPED, head_dim=32, rope_parameters=ROPE)
    ),
    "qwen2vl": Small("qwen2vl", of("Qwen2Config", **UNTIED, rope_parameters=ROPE), places),
    "qwen3vl": Small("qwen3vl", of("Qwen3Config", **GROUPED, head_dim=32, rope_parameters=ROPE), places),
    "seed_oss": Small("seed_oss", of("SeedOssConfig", **UNTIED, head_dim=32, rope_parameters=ROPE)),
    "smollm3": Small("smollm3", of("SmolLM3Config", **GROUPED, rope_parameters=ROPE), change=permuted),
    "stablelm": Small(
        "stablelm", of("StableLmConfig", **UNTIED, use_qkv_bias=True, rope_parameters=HALF), partly_turned
    ),
    "starcoder2": Small("starcoder2", of("Starcoder2Config", **GROUPED, rope_parameters=ROPE)),
    # As of the first checkpoints, and as Flan's.
    "t5": Small("t5", of("T5Config", **_T5), encoder_decoder),
    "t5_gated": Small(
        "t5",
        of("T5Config", **_T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
        encoder_decoder,
    ),
    "umt5": Small(
        "t5",
        of("UMT5Config", **_T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
        encoder_decoder,
    ),
    **MIXTURES,
}
