"""Configs of mixtures of experts, and of models whose layers differ, as GGUF has them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from spqfmt.importers._gguf_changes import Change
from spqfmt.importers._gguf_models import (
    Config,
    Facts,
    head_size,
    next_layers,
    partial_rope,
    rope,
    rotary,
    whole_rope,
)
from spqfmt.importers._gguf_reader import GgufTensor
from spqfmt.importers._gguf_rope import rope_of_factors

Tensors = Mapping[str, GgufTensor]


def qwen2_moe_config(facts: Facts, tensors: Tensors) -> Config:
    """What the metadata say of layers and experts. Raises ValueError for what they lack."""
    shapes = {"moe_intermediate_size": "ffn_up_exps", "shared_expert_intermediate_size": "ffn_up_shexp"}
    sizes = {
        key: facts.rows(f"blk.0.{name}.weight")
        for key, name in shapes.items()
        if f"blk.0.{name}.weight" in facts.shapes
    }
    return {"rope_parameters": partial_rope(facts)} | sizes


def qwen3_moe_config(facts: Facts, tensors: Tensors) -> Config:
    """What the metadata say of layers and experts. Raises ValueError for what they lack."""
    # As llama.cpp has it: the file says nothing of it.
    return qwen2_moe_config(facts, tensors) | {"norm_topk_prob": True}


def gpt_oss_config(facts: Facts, tensors: Tensors) -> Config:
    """What the metadata say of layers and experts. Raises ValueError for what they lack."""
    parameters = whole_rope(facts)
    if parameters["rope_type"] == "yarn":
        parameters |= {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}
    return {
        "intermediate_size": facts.count(
            "expert_feed_forward_length", facts.rows("blk.0.ffn_up_exps.weight")
        ),
        "rope_parameters": parameters,
    }


def llama4_config(facts: Facts, tensors: Tensors) -> Config:
    """What the metadata say of layers and experts. Raises ValueError for what they lack."""
    size = facts.count("rope.dimension_count", head_size(facts))
    parameters = rope(facts)
    factors = tensors.get("rope_freqs.weight")
    if factors is not None:
        length = facts.count("context_length")
        of = {"rope_parameters": parameters, "head_dim": size, "max_position_embeddings": length}
        parameters = rope_of_factors(factors, of)
    return {
        "head_dim": size,
        "interleave_moe_layer_step": facts.count("interleave_moe_layer_step"),
        "intermediate_size": facts.count("expert_feed_forward_length"),
        "intermediate_size_mlp": facts.count("feed_forward_length"),
        "rope_parameters": parameters,
        # As llama.cpp has it: the model of 128 experts has no such norms, and the file says nothing of them.
        "use_qk_norm": facts.count("expert_count") != 128,
    }


def minimax_config(facts: Facts, tensors: Tensors) -> Config:
    """What the metadata say of layers and experts. Raises ValueError for what they lack."""
    return {"rope_parameters": partial_rope(facts)} | {"scoring_func": "sigmoid"}


def lfm2_config(facts: Facts, tensors: Tensors) -> Config:
    """What the metadata say of convolutions and attention. Raises ValueError for what they lack."""
    heads = facts.metadata.get(f"{facts.architecture}.attention.head_count_kv")
    if not isinstance(heads, list) or not all(type(count) is int and count >= 0 for count in heads):
        raise ValueError(f"{facts.architecture}.attention.head_count_kv is no number for each layer")
    if len(heads) != facts.count("block_count") or not any(heads):
        raise ValueError(f"{facts.architecture}.attention.head_count_kv is no number for each layer")
    return {
        "block_auto_adjust_ff_dim": False,
        "layer_types": ["full_attention" if count else "conv" for count in heads],
        "norm_eps": facts.number("attention.layer_norm_rms_epsilon"),
        "num_key_value_heads": max(heads),
        "rope_parameters": whole_rope(facts),
    }


def glm4_moe_config(facts: Facts, tensors: Tensors) -> Config:
    """What the metadata say of layers and experts. Raises ValueError for what they lack."""
    return {
        "attention_bias": "blk.0.attn_q.bias" in facts.shapes,
        "first_k_dense_replace": dense_layers(facts),
        "n_shared_experts": facts.count("expert_shared_count"),
        "norm_topk_prob": facts.flag("expert_weights_norm", default=True),
        "num_hidden_layers": facts.count("block_count") - next_layers(facts),
        "rope_parameters": {"partial_rotary_factor": 1.0, **partial_rope(facts)},
        # As llama.cpp has it: 0 is none.
        "routed_scaling_factor": facts.number("expert_weights_scale", 1.0) or 1.0,
        "use_qk_norm": "blk.0.attn_q_norm.weight" in facts.shapes,
    }


def glm4_moe_aside(name: str, config: Config) -> str:
    """Name a tensor of the layer that guesses a token ahead as the checkpoint's layer; empty for any other."""
    found = re.fullmatch(r"blk\.(\d+)\.(.+)", name)
    is_next = found is not None and int(found[1]) >= config["num_hidden_layers"]
    return f"model.layers.{found[1]}.{found[2]}" if found is not None and is_next else ""


def ernie4_5_moe_config(facts: Facts, tensors: Tensors) -> Config:
    """What the metadata say of layers and experts. Raises ValueError for what they lack."""
    return {
        "moe_k": facts.count("expert_used_count"),
        "moe_layer_end_index": facts.count("block_count") - 1,
        "moe_layer_interval": facts.count("interleave_moe_layer_step", 1),
        "moe_layer_start_index": dense_layers(facts),
        "moe_num_experts": facts.count("expert_count"),
        "moe_num_shared_experts": int(facts.number("expert_shared_count", 0)),
        "rope_parameters": partial_rope(facts),
        "use_bias": "blk.0.attn_q.bias" in facts.shapes,
    }


def lfm2_moe_config(facts: Facts, tensors: Tensors) -> Config:
    """What the metadata say of layers and experts, beside what LFM2 has. Raises ValueError for what they lack."""
    return lfm2_config(facts, tensors) | {
        "num_dense_layers": dense_layers(facts),
        "use_expert_bias": any(name.endswith("exp_probs_b.bias") for name in facts.shapes),
    }


def check_state_groups(facts: Facts) -> None:
    """Raise ValueError where the norm of a state space has other groups than the metadata say."""
    n, inner = facts.count("ssm.group_count"), facts.count("ssm.inner_size")
    for name, shape in facts.shapes.items():
        if name.endswith(".ssm_norm.weight") and len(shape) == 2 and shape != (n, inner // n):
            raise ValueError(f"{facts.architecture}.ssm.group_count is {n}, but {name} has {shape[0]} groups")


def state_heads(facts: Facts) -> tuple[int, int]:
    """Heads of a state space, or of a delta net's values, and channels of each. Raises ValueError for what is none."""
    inner, n_heads = facts.count("ssm.inner_size"), facts.count("ssm.time_step_rank")
    if inner % n_heads:
        raise ValueError(
            f"{facts.architecture}.ssm.inner_size is {inner}, no multiple of ssm.time_step_rank {n_heads}"
        )
    return n_heads, inner // n_heads


def key_heads(facts: Facts) -> int:
    """Heads of keys of the layers that have some. Raises ValueError for no number, or list of numbers."""
    keys = facts.metadata.get(f"{facts.architecture}.attention.head_count_kv")
    heads = keys if isinstance(keys, list) else [keys]
    if not heads or not all(type(n) is int for n in heads) or max(heads) < 1:
        raise ValueError(f"{facts.architecture}.attention.head_count_kv is no number for each layer")
    return int(max(heads))


def granite_hybrid_config(facts: Facts, tensors: Tensors) -> Config:
    """What the metadata say of state spaces, attention and experts. Raises ValueError for what they lack."""
    n_layers, inner = facts.count("block_count"), facts.count("ssm.inner_size")
    n_heads, size = state_heads(facts)
    is_attention = [f"blk.{layer}.attn_q.weight" in facts.shapes for layer in range(n_layers)]
    check_state_groups(facts)
    gate = next((n for n in ("ffn_gate_shexp", "ffn_gate") if f"blk.0.{n}.weight" in facts.shapes), "")
    has_rope = facts.flag("rope.scaling.finetuned", default=False)
    return {
        "attention_bias": False,
        "intermediate_size": facts.count("feed_forward_length"),
        "layer_types": ["full_attention" if own else "linear_attention" for own in is_attention],
        "mamba_conv_bias": any(name.endswith("ssm_conv1d.bias") for name in facts.shapes),
        "mamba_d_conv": facts.count("ssm.conv_kernel"),
        "mamba_d_head": size,
        "mamba_d_state": facts.count("ssm.state_size"),
        "mamba_expand": max(1, inner // facts.count("embedding_length")),
        "mamba_n_groups": facts.count("ssm.group_count"),
        "mamba_n_heads": n_heads,
        "mamba_proj_bias": False,
        "num_key_value_heads": key_heads(facts),
        "num_local_experts": int(facts.number("expert_count", 0)),
        "position_embedding_type": "rope" if has_rope else None,
        "rope_parameters": whole_rope(facts) if has_rope else rope(facts),
        "shared_intermediate_size": facts.rows(f"blk.0.{gate}.weight") if gate else 0,
    }


def granite_hybrid_change(name: str, shape: tuple[int, ...], config: Config) -> Change:
    """Queries and keys as Llama's, A as its exponential."""
    if name.endswith(".A_log"):
        return Change(values=lambda stored: (-stored).log())
    return rotary(name, shape, config)


def expert_groups(facts: Facts) -> tuple[int, int]:
    """Groups of experts, and how many of them a token may choose from. Raises ValueError for others."""
    n = facts.count("expert_group_count", 1)
    n_used = facts.count("expert_group_used_count", n)
    if n_used > n or facts.count("expert_count") % n:
        raise ValueError(
            f"{facts.architecture}.expert_group_count is {n}, which does not go with {facts.count('expert_count')} "
            f"experts, of {n_used} groups for a token"
        )
    return n, n_used


def dense_layers(facts: Facts) -> int:
    """Layers before the first one with experts. Raises ValueError for a number that is none."""
    found = facts.metadata.get(f"{facts.architecture}.leading_dense_block_count", 0)
    if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found <= facts.count("block_count"):
        raise ValueError(
            f"{facts.architecture}.leading_dense_block_count is {found!r}, not a count of layers"
        )
    return found
