"""Mixtures of experts with multi-head latent attention (DeepSeek V2, V3 and what is built as these) as GGUF has them.

llama.cpp multiplies queries with the keys' part of a matrix that transformers applies to the latent vector, so the file
has keys and values of it apart, keys turned: `spqfmt.models.stacked_heads` puts them together.
"""

from __future__ import annotations

from collections.abc import Mapping

from spqfmt.importers._gguf_mixtures import dense_layers, expert_groups
from spqfmt.importers._gguf_models import Config, Facts, next_layers, rope
from spqfmt.importers._gguf_reader import GgufTensor

NAMES = {"model.layers.{}.mlp.gate.e_score_correction_bias": "blk.{}.exp_probs_b"}
_FROM_LOG = 10.0
"""llama.cpp has a tenth of the multiplier of YaRN's logarithm."""


def deepseek2_config(facts: Facts, tensors: Mapping[str, GgufTensor]) -> Config:
    """What the metadata say of V2, whose router is a softmax. Raises ValueError for what they lack."""
    if facts.flag("expert_weights_norm", default=False):
        raise ValueError(
            f"{facts.architecture}.expert_weights_norm is true with a softmax, which transformers' model has not"
        )
    n_groups, n_used = expert_groups(facts)
    limited = {"topk_method": "group_limited_greedy", "n_group": n_groups, "topk_group": n_used}
    return _latent(facts) | (limited if n_groups > 1 else {"topk_method": "greedy"})


def deepseek3_config(facts: Facts, tensors: Mapping[str, GgufTensor]) -> Config:
    """What the metadata say of V3, whose router is a sigmoid. Raises ValueError for what they lack."""
    n_groups, n_used = expert_groups(facts)
    return _latent(facts) | {
        "n_group": n_groups,
        "norm_topk_prob": facts.flag("expert_weights_norm", default=False),
        "num_nextn_predict_layers": next_layers(facts),
        "rope_interleave": True,
        "topk_group": n_used,
    }


def latent_stacks(name: str, shape: tuple[int, ...], config: Config) -> dict[str, tuple[int, ...]]:
    """The names and shapes of keys and values that a matrix may be in the file; nothing for any other tensor."""
    before = name.removesuffix("kv_b_proj.weight")
    if before == name:
        return {}
    heads, rank = config["num_attention_heads"], config["kv_lora_rank"]
    return {
        f"{before}k_b_proj.weight": (heads, rank, config["qk_nope_head_dim"]),
        f"{before}v_b_proj.weight": (heads, config["v_head_dim"], rank),
    }


def _latent(facts: Facts) -> Config:
    heads, turned = facts.count("attention.head_count"), facts.count("rope.dimension_count")
    # Files from before keys and values lay apart have the sizes of a head under the usual keys.
    of_key = facts.count(
        "attention.key_length_mla", facts.metadata.get(f"{facts.architecture}.attention.key_length")
    )
    of_value = facts.count(
        "attention.value_length_mla", facts.metadata.get(f"{facts.architecture}.attention.value_length")
    )
    if turned >= of_key:
        raise ValueError(
            f"{facts.architecture}.rope.dimension_count is {turned}, but a head's keys have {of_key} columns"
        )
    has_rank = f"{facts.architecture}.attention.q_lora_rank" in facts.metadata
    return {
        "attention_bias": "blk.0.attn_q_a.bias" in facts.shapes,
        "first_k_dense_replace": dense_layers(facts),
        "head_dim": turned,
        "kv_lora_rank": facts.count("attention.kv_lora_rank"),
        "moe_intermediate_size": facts.count("expert_feed_forward_length"),
        "n_routed_experts": facts.count("expert_count"),
        "n_shared_experts": facts.count("expert_shared_count"),
        "num_experts_per_tok": facts.count("expert_used_count"),
        "num_hidden_layers": facts.count("block_count") - next_layers(facts),
        "num_key_value_heads": heads,
        "q_lora_rank": facts.count("attention.q_lora_rank") if has_rank else None,
        "qk_nope_head_dim": of_key - turned,
        "qk_rope_head_dim": turned,
        "rope_parameters": _rope(facts),
        # As llama.cpp has it: 0 is none.
        "routed_scaling_factor": facts.number("expert_weights_scale", 1.0) or 1.0,
        "v_head_dim": of_value,
    }


def _rope(facts: Facts) -> Config:
    """YaRN scales scores by its logarithm, as often as the file says, and never the turned columns themselves."""
    parameters = rope(facts)
    if parameters["rope_type"] == "yarn":
        scale = facts.number("rope.scaling.yarn_log_multiplier", 0.0) * _FROM_LOG
        parameters |= {"mscale": scale, "mscale_all_dim": scale} if scale else {"attention_factor": 1.0}
    return parameters
