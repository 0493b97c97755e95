"""What llama.cpp's converter says of some architectures in the metadata of a file."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np


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


def places(writer: gguf.GGUFWriter, config: Any) -> None:
    """Write which columns turn by time, height and width, and the layers that take what was seen."""
    size = config.hidden_size // config.num_attention_heads
    size = getattr(config, "head_dim", None) or size
    writer.add_rope_dimension_sections([size // 4, size // 8, size // 8, 0])
    writer.add_num_deepstack_layers(2)


def places_and_experts(writer: gguf.GGUFWriter, config: Any) -> None:
    """Write the same, and the size of experts."""
    places(writer, config)
    experts(writer, config)


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


def nemotron_hybrid_metadata(writer: gguf.GGUFWriter, config: Any) -> None:
    """Write what each layer is, the sizes of the state spaces, and those of experts where there are some."""
    kinds, prefix = config.layers_block_type, writer.arch
    writer.kv_data[0].pop(f"{prefix}.attention.head_count_kv")
    writer.kv_data[0].pop(f"{prefix}.feed_forward_length")
    writer.kv_data[0].pop(f"{prefix}.expert_count", None)
    writer.kv_data[0].pop(f"{prefix}.expert_used_count", None)
    writer.add_layer_norm_rms_eps(config.layer_norm_epsilon)
    writer.add_head_count_kv(
        [config.num_key_value_heads if kind == "full_attention" else 0 for kind in kinds]
    )
    sizes = {"mlp": config.intermediate_size, "moe": config.moe_intermediate_size}
    writer.add_feed_forward_length([sizes.get(kind, 0) for kind in kinds])
    writer.add_ssm_conv_kernel(config.conv_kernel)
    writer.add_ssm_state_size(config.ssm_state_size)
    writer.add_ssm_group_count(config.n_groups)
    writer.add_ssm_inner_size(config.mamba_num_heads * config.mamba_head_dim)
    writer.add_ssm_time_step_rank(config.mamba_num_heads)
    writer.add_rope_dimension_count(config.head_dim)
    if "moe" in kinds:
        writer.add_expert_count(config.n_routed_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
        writer.add_expert_shared_feed_forward_length(config.moe_shared_expert_intermediate_size)
        writer.add_expert_shared_count(config.n_shared_experts)
        writer.add_expert_weights_norm(config.norm_topk_prob)
        writer.add_expert_weights_scale(config.routed_scaling_factor)
        writer.add_expert_group_count(config.n_group)
        writer.add_expert_group_used_count(config.topk_group)
        if config.moe_latent_size:
            writer.add_moe_latent_size(config.moe_latent_size)


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
    if "mrope_section" in config.rope_parameters:
        writer.add_rope_dimension_sections([*config.rope_parameters["mrope_section"], 0])
    if hasattr(config, "num_experts"):
        shared(writer, config)


def lfm2(writer: gguf.GGUFWriter, config: Any) -> None:
    """Write which layers are convolutions, and their cache."""
    writer.add_shortconv_l_cache(config.conv_L_cache)
    n = config.num_key_value_heads
    writer.add_head_count_kv([n if kind == "full_attention" else 0 for kind in config.layer_types])


def latent(writer: gguf.GGUFWriter, config: Any) -> None:
    """Write ranks and heads of latent attention, how experts are chosen, and YaRN's logarithm, a tenth of it."""
    rank, turned = config.kv_lora_rank, config.qk_rope_head_dim
    for key in ("attention.head_count_kv", "attention.key_length", "attention.value_length", "expert_count"):
        writer.kv_data[0].pop(f"deepseek2.{key}", None)
    writer.kv_data[0].pop("deepseek2.expert_used_count", None)
    writer.add_head_count_kv(1)
    if config.q_lora_rank:
        writer.add_q_lora_rank(config.q_lora_rank)
    writer.add_kv_lora_rank(rank)
    writer.add_key_length(rank + turned)
    writer.add_value_length(rank)
    writer.add_key_length_mla(config.qk_nope_head_dim + turned)
    writer.add_value_length_mla(config.v_head_dim)
    writer.add_rope_dimension_count(turned)
    writer.add_leading_dense_block_count(config.first_k_dense_replace)
    writer.add_expert_count(config.n_routed_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_expert_shared_count(config.n_shared_experts)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_expert_weights_scale(config.routed_scaling_factor)
    is_softmax = config.model_type == "deepseek_v2"
    kinds = gguf.ExpertGatingFuncType
    writer.add_expert_gating_func(kinds.SOFTMAX if is_softmax else kinds.SIGMOID)
    if not is_softmax:
        writer.add_expert_weights_norm(config.norm_topk_prob)
        writer.add_expert_group_count(config.n_group)
        writer.add_expert_group_used_count(config.topk_group)
    scaled = config.rope_parameters
    if scaled["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(scaled["factor"])
        writer.add_rope_scaling_orig_ctx_len(scaled["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_log_mul(0.1 * scaled["mscale_all_dim"])


def encoder_decoder(writer: gguf.GGUFWriter, config: Any) -> None:
    """Write what T5 has: blocks of a decoder, buckets of distances, the token that a decoder begins with."""
    for key in ("attention.head_count_kv", "feed_forward_length"):
        writer.kv_data[0].pop(f"t5.{key}")
    writer.add_feed_forward_length(config.d_ff)
    writer.add_decoder_block_count(config.num_decoder_layers)
    writer.add_relative_attn_buckets_count(config.relative_attention_num_buckets)
    writer.add_layer_norm_rms_eps(config.layer_norm_epsilon)
    writer.add_decoder_start_token_id(0)
    writer.add_pad_token_id(0)
