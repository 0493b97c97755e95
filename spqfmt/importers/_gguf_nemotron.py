"""Nemotron's hybrids (Nemotron H, Nemotron 3 Nano) as GGUF has them: a layer is attention, a state space or a net."""

from __future__ import annotations

from collections.abc import Mapping

from spqfmt.importers._gguf_changes import AS_STORED, Change
from spqfmt.importers._gguf_mixtures import check_state_groups, expert_groups, key_heads, state_heads
from spqfmt.importers._gguf_models import Config, Facts, head_size
from spqfmt.importers._gguf_reader import GgufTensor

_MIXER = "backbone.layers.{}.mixer"
NAMES = {
    f"{_MIXER}.dt_bias": "blk.{}.ssm_dt",
    f"{_MIXER}.gate.e_score_correction_bias": "blk.{}.exp_probs_b",
    f"{_MIXER}.experts.up_proj": "blk.{}.ffn_up_exps",
    f"{_MIXER}.experts.down_proj": "blk.{}.ffn_down_exps",
}
_KINDS = {
    "attn_q": "full_attention",
    "ssm_in": "linear_attention",
    "ffn_up_exps": "moe",
    "ffn_up": "mlp",
}
"""What a layer is that has a tensor of this name."""


def nemotron_hybrid_config(facts: Facts, tensors: Mapping[str, GgufTensor]) -> Config:
    """What the metadata say of layers, state spaces and experts. Raises ValueError for what they lack."""
    kinds = [_kind(facts, layer) for layer in range(facts.count("block_count"))]
    n_heads, size = state_heads(facts)
    check_state_groups(facts)
    nets = [layer for layer, kind in enumerate(kinds) if kind == "mlp"]
    return {
        "attention_bias": _has(facts, "attn_q.bias"),
        "conv_kernel": facts.count("ssm.conv_kernel"),
        "expand": max(1, n_heads * size // facts.count("embedding_length")),
        "head_dim": head_size(facts),
        "intermediate_size": facts.rows(f"blk.{nets[0]}.ffn_up.weight") if nets else 1,
        "layers_block_type": kinds,
        "mamba_head_dim": size,
        "mamba_num_heads": n_heads,
        "mamba_proj_bias": _has(facts, "ssm_in.bias"),
        "mlp_bias": _has(facts, "ffn_up.bias"),
        "n_groups": facts.count("ssm.group_count"),
        "num_key_value_heads": key_heads(facts),
        "ssm_state_size": facts.count("ssm.state_size"),
        "use_conv_bias": _has(facts, "ssm_conv1d.bias"),
        **(_experts(facts, kinds.index("moe")) if "moe" in kinds else {}),
    }


def nemotron_hybrid_change(name: str, shape: tuple[int, ...], config: Config) -> Change:
    """A as its exponential, with its sign turned."""
    return Change(values=lambda stored: (-stored).log()) if name.endswith(".A_log") else AS_STORED


def _kind(facts: Facts, layer: int) -> str:
    names = {f"blk.{layer}.{name}.weight": kind for name, kind in _KINDS.items()}
    found = [name for name in names if name in facts.shapes]
    if not found:
        raise ValueError(f"{facts.architecture}: block {layer} has none of {', '.join(names)}")
    if len(found) > 1:
        raise ValueError(f"{facts.architecture}: {' and '.join(found)} are of different kinds of layers")
    return names[found[0]]


def _experts(facts: Facts, layer: int) -> Config:
    latent = f"blk.{layer}.ffn_latent_down.weight"
    n_groups, n_used = expert_groups(facts)
    return {
        "moe_intermediate_size": facts.count("expert_feed_forward_length"),
        "moe_latent_size": facts.rows(latent) if latent in facts.shapes else None,
        "moe_shared_expert_intermediate_size": facts.count("expert_shared_feed_forward_length"),
        "n_group": n_groups,
        "n_routed_experts": facts.count("expert_count"),
        "n_shared_experts": facts.count("expert_shared_count"),
        "norm_topk_prob": facts.flag("expert_weights_norm", default=False),
        "num_experts_per_tok": facts.count("expert_used_count"),
        # As llama.cpp has it: 0 is none.
        "routed_scaling_factor": facts.number("expert_weights_scale", 1.0) or 1.0,
        "topk_group": n_used,
    }


def _has(facts: Facts, name: str) -> bool:
    return any(key.endswith(f".{name}") for key in facts.shapes)
