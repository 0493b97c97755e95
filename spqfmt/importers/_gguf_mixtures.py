"""Mixtures of experts whose first layers have none, as GGUF has them: GLM 4.5, ERNIE 4.5, LFM2."""

from __future__ import annotations

import re
from collections.abc import Mapping

from spqfmt.importers._gguf_models import Config, Facts, next_layers, partial_rope
from spqfmt.importers._gguf_reader import GgufTensor

Tensors = Mapping[str, GgufTensor]


def glm4_moe_config(facts: Facts, tensors: Tensors) -> Config:
    """What the metadata say of layers and experts. Raises ValueError for what they lack."""
    return {
        "attention_bias": "blk.0.attn_q.bias" in facts.shapes,
        "first_k_dense_replace": _dense_layers(facts),
        "n_shared_experts": facts.count("expert_shared_count"),
        "norm_topk_prob": bool(facts.metadata.get(f"{facts.architecture}.expert_weights_norm", True)),
        "num_hidden_layers": facts.count("block_count") - next_layers(facts),
        "rope_parameters": {"partial_rotary_factor": 1.0, **partial_rope(facts)},
        "routed_scaling_factor": facts.number("expert_weights_scale", 1.0),
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
        "moe_layer_start_index": _dense_layers(facts),
        "moe_num_experts": facts.count("expert_count"),
        "moe_num_shared_experts": int(facts.number("expert_shared_count", 0)),
        "rope_parameters": partial_rope(facts),
        "use_bias": "blk.0.attn_q.bias" in facts.shapes,
    }


def lfm2_moe_config(facts: Facts, tensors: Tensors) -> Config:
    """What the metadata say of layers and experts, beside what LFM2 has. Raises ValueError for what they lack."""
    return {
        "num_dense_layers": _dense_layers(facts),
        "use_expert_bias": any(name.endswith("exp_probs_b.bias") for name in facts.shapes),
    }


def _dense_layers(facts: Facts) -> int:
    found = facts.metadata.get(f"{facts.architecture}.leading_dense_block_count", 0)
    if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found <= facts.count("block_count"):
        raise ValueError(
            f"{facts.architecture}.leading_dense_block_count is {found!r}, not a count of layers"
        )
    return found
