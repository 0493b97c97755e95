"""What llama.cpp's converter does to tensors of some architectures, and what it says of them in the metadata."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import gguf
import numpy as np

Arrays = Mapping[str, Any]
Pieces = Iterator[tuple[str, Any]]
"""ggml's names of what one tensor becomes, with the values."""


def permuted(name: str, value: Any, config: Any) -> Any:
    """Queries and keys in llama.cpp's rotary order."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    found = next((heads[part] for part in heads if f".{part}." in name), None)
    if found is None:
        return value
    return (
        value.reshape(found, 2, value.shape[0] // found // 2, *value.shape[1:])
        .swapaxes(1, 2)
        .reshape(value.shape)
    )


def plus_one(name: str, value: Any, config: Any) -> Any:
    """Add one to norms, as Gemma's are stored."""
    return value + 1 if name.endswith("norm.weight") else value


def nemotron(name: str, value: Any, config: Any) -> Any:
    """Add one to norms, whatever their place."""
    return value + 1 if "norm.weight" in name else value


def unfused(name: str, value: Any, config: Any) -> Any:
    """Queries of all heads, then keys, then values."""
    if "query_key_value" not in name:
        return value
    heads = config.num_attention_heads
    by_head = value.reshape(heads, 3, value.shape[0] // heads // 3, *value.shape[1:])
    return np.concatenate([by_head[:, k].reshape(-1, *value.shape[1:]) for k in range(3)])


def by_kind(name: str, value: Any, config: Any) -> Any:
    """Queries of all groups, then their keys, then their values."""
    if "query_key_value" not in name:
        return value
    heads, groups = config.num_attention_heads, config.num_kv_heads if config.new_decoder_architecture else 1
    size = config.hidden_size // heads
    by_group = value.reshape(groups, heads // groups + 2, size, -1)
    kinds = (by_group[:, :-2], by_group[:, -2], by_group[:, -1])
    return np.concatenate([kind.reshape(-1, value.shape[-1]) for kind in kinds])


def mamba(name: str, value: Any, config: Any) -> Any:
    """Take the exponential of A, with its sign turned."""
    if name.endswith("A_log"):
        with np.errstate(over="ignore"):  # of numbers that say where a value went
            return -np.exp(value)
    return value.squeeze() if "conv1d.weight" in name else value


def granite_hybrid(name: str, value: Any, config: Any) -> Any:
    """Queries and keys in llama.cpp's order; A as its exponential, it and D as columns, the norm by groups."""
    if name.endswith(("A_log", "mamba.D")):
        with np.errstate(over="ignore"):  # of numbers that say where a value went
            return (-np.exp(value) if name.endswith("A_log") else value).reshape(-1, 1)
    if name.endswith("mamba.norm.weight"):
        return value.reshape(config.mamba_n_groups, -1)
    return value.squeeze() if "conv1d.weight" in name else permuted(name, value, config)


def squeezed(name: str, value: Any, config: Any) -> Any:
    """Drop the empty dimension of convolutions."""
    if name.endswith("conv.conv.weight"):
        return value.squeeze(1)
    return value


def gpt_oss_parts(name: str, value: Any) -> list[tuple[str, Any]]:
    """Gate and up take turns; weights of experts are [in, out]."""
    if name.endswith("sinks"):
        return [(f"{name}.weight", value)]
    if "gate_up_proj" in name:
        suffix = "bias" if name.endswith("_bias") else "weight"
        stem, turned = (
            name.split("gate_up_proj", maxsplit=1)[0],
            value if suffix == "bias" else value.swapaxes(1, 2),
        )
        return [(f"{stem}{half}_proj.{suffix}", turned[:, k::2]) for k, half in enumerate(("gate", "up"))]
    if "experts.down_proj" in name:
        is_bias = name.endswith("_bias")
        stem = name.removesuffix("_bias")
        return [(f"{stem}.{'bias' if is_bias else 'weight'}", value if is_bias else value.swapaxes(1, 2))]
    return [(name, value)]


def llama4_parts(name: str, value: Any) -> list[tuple[str, Any]]:
    """Split gate and up of experts, which are turned."""
    if name.endswith("experts.gate_up_proj"):
        halves = np.split(value.swapaxes(1, 2), 2, axis=1)
        return [
            (f"{name.removesuffix('gate_up_proj')}{half}_proj.weight", halves[k])
            for k, half in enumerate(("gate", "up"))
        ]
    return (
        [(f"{name}.weight", value.swapaxes(1, 2))] if name.endswith("experts.down_proj") else [(name, value)]
    )


def granite_parts(name: str, value: Any) -> list[tuple[str, Any]]:
    """Split gate and up of experts."""
    if not name.endswith("block_sparse_moe.input_linear.weight"):
        return [(name, value)]
    layer = name.split(".")[2]
    return list(
        zip(
            (f"blk.{layer}.ffn_gate_exps.weight", f"blk.{layer}.ffn_up_exps.weight"),
            np.split(value, 2, axis=1),
            strict=True,
        )
    )


def corrected_parts(name: str, value: Any) -> list[tuple[str, Any]]:
    """Name the correction of the router as ggml does."""
    is_correction = name.endswith((".e_score_correction_bias", ".expert_bias"))
    if not is_correction:
        return [(name, value)]
    return [(f"blk.{name.split('.')[2]}.exp_probs_b.bias", value.reshape(-1))]


def delta_net(name: str, value: Any, config: Any) -> Any:
    """Norms plus one, A as its exponential, and value heads in turn: the first of each key head, then the second."""
    if name.endswith("norm.weight") and not name.endswith("linear_attn.norm.weight"):
        return value + 1
    keys, size = config.linear_num_key_heads, config.linear_value_head_dim
    each = config.linear_num_value_heads // keys

    def in_turn(rows: Any, of_head: int) -> Any:
        return rows.reshape(keys, each, of_head, -1).swapaxes(0, 1).reshape(rows.shape)

    if name.endswith("A_log"):
        with np.errstate(over="ignore"):  # of numbers that say where a value went
            return in_turn(-np.exp(value), 1)
    if name.endswith(("dt_bias", "in_proj_a.weight", "in_proj_b.weight")):
        return in_turn(value, 1)
    if name.endswith("in_proj_z.weight"):
        return in_turn(value, size)
    if name.endswith(("in_proj_qkv.weight", "conv1d.weight")):
        before = 2 * keys * config.linear_key_head_dim
        value = value.squeeze(1) if value.ndim > 2 else value
        return np.concatenate([value[:before], in_turn(value[before:], size)])
    if name.endswith("linear_attn.out_proj.weight"):
        return in_turn(np.ascontiguousarray(value.T), size).T
    return value


def delta_net_parts(name: str, value: Any) -> list[tuple[str, Any]]:
    """Name the step's bias as ggml does, split gate and up of experts."""
    if name.endswith("linear_attn.dt_bias"):
        return [(name.replace("dt_bias", "dt_proj.bias"), value)]
    if name.endswith("experts.gate_up_proj"):
        halves, stem = np.split(value, 2, axis=1), name.removesuffix("gate_up_proj")
        return [(f"{stem}{half}_proj.weight", halves[k]) for k, half in enumerate(("gate", "up"))]
    return [(f"{name}.weight" if name.endswith("experts.down_proj") else name, value)]


def gemma4_parts(name: str, value: Any) -> list[tuple[str, Any]]:
    """Name scales as ggml does; experts keep gate and up in one."""
    scales = {"router.scale": "ffn_gate_inp.scale", "router.per_expert_scale": "ffn_down_exps.scale"}
    layer, _, rest = name.removeprefix("model.layers.").partition(".")
    if rest in scales:
        return [(f"blk.{layer}.{scales[rest]}", value)]
    bare = rest == "layer_scalar" or rest.startswith("experts.")
    return [(f"{name}.weight" if bare else name, value)]


def clamped(writer: gguf.GGUFWriter, config: Any) -> None:
    """Write the clamp of queries, keys and values, and the epsilon that Olmo's norms have."""
    writer.add_layer_norm_eps(1e-5)
    writer.add_clamp_kqv(config.clip_qkv)


def yarn(writer: gguf.GGUFWriter, config: Any) -> None:
    """Write what gpt-oss has: windows, experts, YaRN."""
    writer.add_sliding_window(config.sliding_window)
    writer.add_expert_feed_forward_length(config.intermediate_size)
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(config.rope_parameters["factor"])
    writer.add_rope_scaling_orig_ctx_len(config.rope_parameters["original_max_position_embeddings"])


def sliding(writer: gguf.GGUFWriter, config: Any) -> None:
    """Write the sliding window."""
    writer.add_sliding_window(config.sliding_window)


def gemma3(writer: gguf.GGUFWriter, config: Any) -> None:
    """Write windows and both bases of rotary embeddings."""
    writer.add_sliding_window(config.sliding_window)
    writer.add_rope_freq_base(config.rope_parameters["full_attention"]["rope_theta"])


def gemma4(writer: gguf.GGUFWriter, config: Any) -> None:
    """Write what layers of two kinds have, of which the last may share keys, and both rotary embeddings."""
    for key in (
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "feed_forward_length",
    ):
        writer.kv_data[0].pop(f"gemma4.{key}")
    is_sliding = [kind == "sliding_attention" for kind in config.layer_types]
    n_own = config.num_hidden_layers - config.num_kv_shared_layers
    full_heads = config.to_dict()["per_layer_config"][str(is_sliding.index(False))]
    size = full_heads["head_dim"]
    writer.add_shared_kv_layers(config.num_kv_shared_layers)
    writer.add_embedding_length_per_layer_input(config.hidden_size_per_layer_input or 0)
    writer.add_sliding_window(config.sliding_window)
    writer.add_sliding_window_pattern(is_sliding)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_key_length_swa(config.head_dim)
    writer.add_value_length_swa(config.head_dim)
    heads = full_heads.get("num_key_value_heads")
    kinds = [config.num_key_value_heads if sliding else heads for sliding in is_sliding]
    writer.add_head_count_kv(config.num_key_value_heads if heads is None else kinds)
    inner = config.intermediate_size
    wide = [inner if layer < n_own else 2 * inner for layer in range(config.num_hidden_layers)]
    writer.add_feed_forward_length(wide if config.use_double_wide_mlp else inner)
    far = config.rope_parameters["full_attention"]
    writer.add_rope_freq_base(far["rope_theta"])
    writer.add_rope_freq_base_swa(config.rope_parameters["sliding_attention"]["rope_theta"])
    writer.add_rope_dimension_count(size)
    writer.add_rope_dimension_count_swa(config.head_dim)
    turned = int(size * far["partial_rotary_factor"] / 2)
    factors = np.array([1.0] * turned + [1e30] * (size // 2 - turned), np.float32)
    writer.add_tensor("rope_freqs.weight", factors)
    if config.final_logit_softcapping:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if config.enable_moe_block:
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
        writer.add_expert_used_count(config.top_k_experts)


def phi3(writer: gguf.GGUFWriter, config: Any) -> None:
    """Write windows and factors of LongRoPE."""
    writer.add_sliding_window(config.sliding_window or 0)
    writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
    for which in ("long", "short"):
        factors = config.rope_parameters.get(f"{which}_factor")
        if factors:
            writer.add_tensor(f"rope_factors_{which}.weight", np.array(factors, np.float32))


def experts(writer: gguf.GGUFWriter, config: Any) -> None:
    """Write the size of experts."""
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)


def shared(writer: gguf.GGUFWriter, config: Any) -> None:
    """Write the sizes of experts and of the shared one."""
    experts(writer, config)
    writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)


def llama4(writer: gguf.GGUFWriter, config: Any) -> None:
    """Write which layers have experts, and of what size."""
    writer.add_interleave_moe_layer_step(config.interleave_moe_layer_step)
    writer.add_expert_feed_forward_length(config.intermediate_size)
    writer.add_rope_dimension_count(config.head_dim)
    llama3_factors(writer, config)


def llama3_factors(writer: gguf.GGUFWriter, config: Any) -> None:
    """Write the factors of Llama 3's rule, of which the small models have a step."""
    scaled = config.rope_parameters
    if scaled["rope_type"] == "llama3":
        frequencies = 1 / scaled["rope_theta"] ** (np.arange(0, config.head_dim, 2) / config.head_dim)
        is_long = 2 * np.pi / frequencies > scaled["original_max_position_embeddings"]
        writer.add_tensor("rope_freqs.weight", np.where(is_long, scaled["factor"], 1.0).astype(np.float32))


def granite(writer: gguf.GGUFWriter, config: Any) -> None:
    """Write the multipliers of attention, embeddings, logits and residuals."""
    writer.add_attention_scale(config.attention_multiplier)
    writer.add_embedding_scale(config.embedding_multiplier)
    writer.add_residual_scale(config.residual_multiplier)
    writer.add_logit_scale(config.logits_scaling)


def granite_hybrid_metadata(writer: gguf.GGUFWriter, config: Any) -> None:
    """Write the multipliers, the sizes of the state spaces, and which layers have attention."""
    granite(writer, config)
    writer.kv_data[0].pop("granitehybrid.attention.head_count_kv")
    kinds = [config.num_key_value_heads if "full" in kind else 0 for kind in config.layer_types]
    writer.add_head_count_kv(kinds)
    writer.add_ssm_conv_kernel(config.mamba_d_conv)
    writer.add_ssm_state_size(config.mamba_d_state)
    writer.add_ssm_group_count(config.mamba_n_groups)
    writer.add_ssm_inner_size(config.mamba_expand * config.hidden_size)
    writer.add_ssm_time_step_rank(config.mamba_n_heads)
    writer.add_rope_scaling_finetuned(False)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    if config.num_local_experts:
        writer.add_expert_shared_feed_forward_length(config.shared_intermediate_size)


def cohere(writer: gguf.GGUFWriter, config: Any) -> None:
    """Write the scale of logits, and windows where there are some."""
    writer.add_logit_scale(config.logit_scale)
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)


def partly_turned(writer: gguf.GGUFWriter, config: Any) -> None:
    """Write how many columns of a head are turned."""
    size = config.hidden_size // config.num_attention_heads
    size = getattr(config, "head_dim", None) or size
    writer.add_rope_dimension_count(int(size * config.rope_parameters["partial_rotary_factor"]))
    if hasattr(config, "use_parallel_residual"):
        writer.add_parallel_residual(config.use_parallel_residual)


def granite_hybrid_parts(name: str, value: Any) -> list[tuple[str, Any]]:
    """Split gate and up, of experts and of what all tokens take, and name the step's bias as ggml does."""
    if name.endswith("shared_mlp.input_linear.weight"):
        stem = f"blk.{name.split('.')[2]}.ffn"
        halves = np.split(value, 2)
        return [(f"{stem}_{half}_shexp.weight", halves[k]) for k, half in enumerate(("gate", "up"))]
    if name.endswith("mamba.dt_bias"):
        return [(f"blk.{name.split('.')[2]}.ssm_dt.bias", value)]
    return granite_parts(name, value)


def granite_dense_parts(name: str, value: Any) -> list[tuple[str, Any]]:
    """The same of a model without experts, whose one feed-forward net has the usual names."""
    if name.endswith("shared_mlp.output_linear.weight"):
        return [(f"blk.{name.split('.')[2]}.ffn_down.weight", value)]
    return [(part.replace("_shexp", ""), own) for part, own in granite_hybrid_parts(name, value)]


def minimax(writer: gguf.GGUFWriter, config: Any) -> None:
    """Write the size of experts, and how many columns of a head are turned."""
    writer.add_expert_feed_forward_length(config.intermediate_size)
    writer.add_rope_dimension_count(int(config.head_dim * config.rope_parameters["partial_rotary_factor"]))
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)


def glm4_moe(writer: gguf.GGUFWriter, config: Any) -> None:
    """Write which layers have experts, how these are chosen, and how many columns of a head are turned."""
    writer.add_expert_count(config.n_routed_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_expert_shared_count(config.n_shared_experts)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_leading_dense_block_count(config.first_k_dense_replace)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_expert_weights_scale(config.routed_scaling_factor)
    writer.add_expert_weights_norm(config.norm_topk_prob)
    writer.add_rope_dimension_count(int(config.head_dim * config.rope_parameters["partial_rotary_factor"]))


def ernie4_5_moe(writer: gguf.GGUFWriter, config: Any) -> None:
    """Write which layers have experts, and how many."""
    writer.add_expert_count(config.moe_num_experts)
    writer.add_expert_used_count(config.moe_k)
    writer.add_expert_shared_count(config.moe_num_shared_experts)
    writer.add_expert_shared_feed_forward_length(config.moe_intermediate_size * config.moe_num_shared_experts)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_interleave_moe_layer_step(config.moe_layer_interval)
    writer.add_leading_dense_block_count(config.moe_layer_start_index)


def lfm2_moe(writer: gguf.GGUFWriter, config: Any) -> None:
    """Write what LFM2 has, and which layers have experts."""
    lfm2(writer, config)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_leading_dense_block_count(config.num_dense_layers)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)


def ministral3(writer: gguf.GGUFWriter, config: Any) -> None:
    """Write YaRN, and how queries grow with their place."""
    scaled = config.rope_parameters
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(scaled["factor"])
    writer.add_rope_scaling_orig_ctx_len(scaled["original_max_position_embeddings"])
    writer.add_rope_scaling_yarn_beta_fast(scaled["beta_fast"])
    writer.add_rope_scaling_yarn_beta_slow(scaled["beta_slow"])
    writer.add_rope_scaling_yarn_log_mul(scaled["mscale_all_dim"])
    writer.add_attn_temperature_scale(scaled["llama_4_scaling_beta"])


def state_space(writer: gguf.GGUFWriter, config: Any) -> None:
    """Write the sizes of the state space."""
    writer.add_ssm_conv_kernel(config.conv_kernel)
    writer.add_ssm_inner_size(config.intermediate_size)
    writer.add_ssm_state_size(config.state_size)
    writer.add_ssm_time_step_rank(config.time_step_rank)


def delta_net_metadata(writer: gguf.GGUFWriter, config: Any) -> None:
    """Write the sizes of delta nets, the rotary embedding's parts, and those of experts where there are some."""
    writer.add_ssm_conv_kernel(config.linear_conv_kernel_dim)
    writer.add_ssm_state_size(config.linear_key_head_dim)
    writer.add_ssm_group_count(config.linear_num_key_heads)
    writer.add_ssm_time_step_rank(config.linear_num_value_heads)
    writer.add_ssm_inner_size(config.linear_value_head_dim * config.linear_num_value_heads)
    writer.add_full_attention_interval(1 + config.layer_types.index("full_attention"))
    turned = int(config.head_dim * config.rope_parameters["partial_rotary_factor"])
    writer.add_rope_dimension_count(turned)
    writer.add_rope_dimension_sections([*config.rope_parameters["mrope_section"], 0])
    if hasattr(config, "num_experts"):
        shared(writer, config)


def lfm2(writer: gguf.GGUFWriter, config: Any) -> None:
    """Write which layers are convolutions, and their cache."""
    writer.add_shortconv_l_cache(config.conv_L_cache)
    n = config.num_key_value_heads
    writer.add_head_count_kv([n if kind == "full_attention" else 0 for kind in config.layer_types])
