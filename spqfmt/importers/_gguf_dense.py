"""Configs and changes of models whose layers are all alike, without experts, as GGUF has them."""

from __future__ import annotations

from collections.abc import Mapping

from spqfmt.importers._gguf_changes import AS_STORED, Change, minus_one
from spqfmt.importers._gguf_models import (
    Config,
    Facts,
    head_size,
    partial_rope,
    rope,
    whole_rope,
)
from spqfmt.importers._gguf_reader import GgufTensor
from spqfmt.importers._gguf_rope import floats_of, rope_of_factors

Tensors = Mapping[str, GgufTensor]
ROPE_FACTORS = "rope_freqs.weight"
LONG_FACTORS, SHORT_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"


def plain_config(facts: Facts, tensors: Tensors) -> Config:
    """What the metadata say beyond the usual. Raises ValueError for what they lack."""
    return {"rope_parameters": partial_rope(facts)}


def _said(facts: Facts, key: str) -> int | float | str | bool | None:
    value = facts.metadata.get(f"{facts.architecture}.{key}")
    return value if isinstance(value, int | float | str) else None


def _has(facts: Facts, name: str) -> bool:
    return f"blk.0.{name}" in facts.shapes


def gemma3_config(facts: Facts, tensors: Tensors) -> Config:
    """What the metadata say beyond the usual. Raises ValueError for what they lack."""
    # The file does not say how the 27B model, of 62 layers, scales its queries; llama.cpp too goes by that number.
    hidden, heads = facts.count("embedding_length"), facts.count("attention.head_count")
    is_largest = facts.count("block_count") == 62
    near = {"rope_type": "default", "rope_theta": facts.number("rope.freq_base_swa", 10000.0)}
    far = rope(facts)
    far["rope_theta"] = facts.number("rope.freq_base", 1_000_000.0)
    return {
        "query_pre_attn_scalar": hidden // heads if is_largest else head_size(facts),
        "rope_parameters": {"full_attention": far, "sliding_attention": near},
        "sliding_window": facts.count("attention.sliding_window", 4096),
    }


def phi3_config(facts: Facts, tensors: Tensors) -> Config:
    """What the metadata say beyond the usual. Raises ValueError for what they lack."""
    parameters = partial_rope(facts)
    factors = [tensors.get(name) for name in (LONG_FACTORS, SHORT_FACTORS)]
    original = facts.count("rope.scaling.original_context_length", facts.count("context_length"))
    if factors[0] is not None and factors[1] is not None:
        parameters |= {
            "rope_type": "longrope",
            "long_factor": floats_of(factors[0]).tolist(),
            "short_factor": floats_of(factors[1]).tolist(),
            "original_max_position_embeddings": original,
        }
    return {
        "rope_parameters": parameters,
        "original_max_position_embeddings": original,
        "sliding_window": _said(facts, "attention.sliding_window") or None,
    }


def mistral3_config(facts: Facts, tensors: Tensors) -> Config:
    """What the metadata say beyond the usual. Raises ValueError for what they lack."""
    if facts.number("attention.temperature_scale", 0.0):
        raise ValueError("mistral3.attention.temperature_scale without YaRN is no model of transformers")
    return plain_config(facts, tensors) | {"sliding_window": None}


def granite_config(facts: Facts, tensors: Tensors) -> Config:
    """What the metadata say beyond the usual. Raises ValueError for what they lack."""
    return plain_config(facts, tensors) | {"attention_bias": _has(facts, "attn_q.bias")}


def hunyuan_config(facts: Facts, tensors: Tensors) -> Config:
    """What the metadata say beyond the usual. Raises ValueError for what they lack."""
    # Whatever its base was stretched by, the file has it stretched.
    return {
        "attention_bias": _has(facts, "attn_q.bias"),
        "head_dim": head_size(facts),
        "rope_parameters": whole_rope(facts),
    }


def biased_config(facts: Facts, tensors: Tensors) -> Config:
    """What the metadata say beyond the usual. Raises ValueError for what they lack."""
    return plain_config(facts, tensors) | {
        "attention_bias": _has(facts, "attn_q.bias"),
        "attention_out_bias": _has(facts, "attn_output.bias"),
        "mlp_bias": _has(facts, "ffn_up.bias"),
    }


def stablelm_config(facts: Facts, tensors: Tensors) -> Config:
    """What the metadata say beyond the usual. Raises ValueError for what they lack."""
    return plain_config(facts, tensors) | {
        "qk_layernorm": _has(facts, "attn_q_norm.weight"),
        "use_parallel_residual": not _has(facts, "ffn_norm.weight"),
        "use_qkv_bias": _has(facts, "attn_q.bias"),
    }


def bloom_config(facts: Facts, tensors: Tensors) -> Config:
    """What the metadata say beyond the usual. Raises ValueError for what they lack."""
    return {}


def gptneox_config(facts: Facts, tensors: Tensors) -> Config:
    """What the metadata say beyond the usual. Raises ValueError for what they lack."""
    return plain_config(facts, tensors) | {
        "attention_bias": _has(facts, "attn_qkv.bias"),
        "use_parallel_residual": facts.flag("use_parallel_residual", default=True),
    }


def smollm3_config(facts: Facts, tensors: Tensors) -> Config:
    """What the metadata say beyond the usual. Raises ValueError for what they lack."""
    return granite_config(facts, tensors) | {"mlp_bias": _has(facts, "ffn_up.bias")}


def exaone4_config(facts: Facts, tensors: Tensors) -> Config:
    """What the metadata say beyond the usual. Raises ValueError for what they lack."""
    plain, factors = plain_config(facts, tensors), tensors.get(ROPE_FACTORS)
    if factors is not None:
        length = facts.count("context_length")
        of = {**plain, "head_dim": head_size(facts), "max_position_embeddings": length}
        plain = {"rope_parameters": rope_of_factors(factors, of)}
    if _said(facts, "attention.sliding_window"):
        return plain
    whole = ["full_attention"] * facts.count("block_count")
    return plain | {
        "layer_types": whole,
        "sliding_window": None,
        "sliding_window_pattern": None,
    }


def fused_change(name: str, shape: tuple[int, ...], config: Config) -> Change:
    """Queries, keys and values of a head side by side, which the converter puts one after the other."""
    if ".query_key_value." not in name:
        return AS_STORED
    heads = config.get("n_head") or config["num_attention_heads"]
    return Change(rows=((heads, 3, shape[0] // heads // 3), (1, 0, 2)))


def falcon_config(facts: Facts, tensors: Tensors) -> Config:
    """What the metadata say beyond the usual. Raises ValueError for what they lack."""
    n_keys = facts.count("attention.head_count_kv", facts.count("attention.head_count"))
    return plain_config(facts, tensors) | {
        "multi_query": n_keys == 1,
        "new_decoder_architecture": _has(facts, "attn_norm_2.weight"),
        "num_kv_heads": n_keys,
    }


def falcon_runs(name: str, shape: tuple[int, ...], config: Config) -> list[tuple[int, int]]:
    """Falcon's queries of a group, its key, its value; the file has all queries, then all keys, then all values."""
    if ".query_key_value." not in name:
        return []
    heads, groups = config["num_attention_heads"], config["num_kv_heads"]
    size, each = shape[0] // (heads + 2 * groups), heads // groups
    runs = ([(g * each, each), (heads + g, 1), (heads + groups + g, 1)] for g in range(groups))
    return [(first * size, n * size) for run in runs for first, n in run]


def olmo_config(facts: Facts, tensors: Tensors) -> Config:
    """What the metadata say beyond the usual. Raises ValueError for what they lack."""
    return plain_config(facts, tensors) | {"clip_qkv": _said(facts, "attention.clamp_kqv")}


def nemotron_change(name: str, shape: tuple[int, ...], config: Config) -> Change:
    """Norms as Nemotron has them."""
    return Change(values=minus_one) if "norm.weight" in name else AS_STORED


def mamba_config(facts: Facts, tensors: Tensors) -> Config:
    """What the metadata say beyond the usual. Raises ValueError for what they lack."""
    return {"expand": max(1, facts.count("ssm.inner_size") // facts.count("embedding_length"))}


def mamba_change(name: str, shape: tuple[int, ...], config: Config) -> Change:
    """A as its exponential, with its sign turned."""
    return Change(values=lambda stored: (-stored).log()) if name.endswith(".A_log") else AS_STORED


def ministral3_config(facts: Facts, tensors: Tensors) -> Config:
    """What the metadata say beyond the usual. Raises ValueError for what they lack."""
    scale = facts.number("rope.scaling.yarn_log_multiplier", 0.0)
    scales = {"mscale": scale, "mscale_all_dim": scale} if scale else {}
    beta = facts.number("attention.temperature_scale", 0.0)
    return {
        "rope_parameters": {**whole_rope(facts), **scales, "llama_4_scaling_beta": beta},
        "sliding_window": None,
    }
