"""Gemma 4 as GGUF has it: two kinds of layers with heads of their own, inputs of each layer, keys that layers share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from spqfmt.importers._gguf_models import Config, Facts, rope
from spqfmt.importers._gguf_reader import GgufTensor
from spqfmt.importers._gguf_rope import floats_of

_SLIDING, _FULL = "sliding_attention", "full_attention"
_FACTORS = "rope_freqs.weight"
NAMES = {
    "model.layers.{}.router.scale": "blk.{}.ffn_gate_inp.scale",
    "model.layers.{}.router.per_expert_scale": "blk.{}.ffn_down_exps.scale",
}


def gemma4_config(facts: Facts, tensors: Mapping[str, GgufTensor]) -> Config:
    """What the metadata say of layers, heads and experts. Raises ValueError for what they lack."""
    n_layers = facts.count("block_count")
    is_sliding = _of_layers(facts, "attention.sliding_window_pattern", n_layers)
    full = [layer for layer in range(n_layers) if not is_sliding[layer]]
    n_shared = _number(facts, "attention.shared_kv_layers")
    inner = _of_layers(facts, "feed_forward_length", n_layers)
    heads = _of_layers(facts, "attention.head_count_kv", n_layers)
    if not full or n_shared >= n_layers or min(*inner, *heads) < 1:
        raise ValueError(f"{facts.architecture}: its metadata are not those of layers of two kinds")
    own = [layer for layer in full if layer < n_layers - n_shared]
    is_key_value = any(f"blk.{layer}.attn_v.weight" not in facts.shapes for layer in own)
    sliding_heads = next((heads[layer] for layer in range(n_layers) if is_sliding[layer]), heads[full[0]])
    config: Config = {
        "attention_k_eq_v": is_key_value,
        "global_head_dim": facts.count("attention.key_length"),
        "head_dim": facts.count("attention.key_length_swa"),
        "hidden_size_per_layer_input": _number(facts, "embedding_length_per_layer_input"),
        "intermediate_size": inner[0],
        "layer_types": [_SLIDING if sliding else _FULL for sliding in is_sliding],
        "num_global_key_value_heads": heads[full[0]] if is_key_value else None,
        "num_key_value_heads": sliding_heads,
        "num_kv_shared_layers": n_shared,
        "rope_parameters": _rope(facts, tensors),
        "sliding_window": facts.count("attention.sliding_window"),
        "use_double_wide_mlp": inner[-1] > inner[0],
    }
    if "per_layer_token_embd.weight" in facts.shapes:
        config["vocab_size_per_layer_input"] = facts.shapes["per_layer_token_embd.weight"][0]
    if _number(facts, "expert_count"):
        config |= {
            "enable_moe_block": True,
            "moe_intermediate_size": facts.count("expert_feed_forward_length"),
            "num_experts": facts.count("expert_count"),
            "top_k_experts": facts.count("expert_used_count"),
        }
    return config


def unused_keys(name: str, config: Config) -> str:
    """Name a tensor of keys or values of a layer that uses those of another; empty for any other."""
    found = re.fullmatch(r"blk\.(\d+)\.attn_(k|v|k_norm)\.weight", name)
    if found is None or int(found[1]) < config["num_hidden_layers"] - config["num_kv_shared_layers"]:
        return ""
    module = "k_norm" if found[2] == "k_norm" else f"{found[2]}_proj"
    return f"model.layers.{found[1]}.self_attn.{module}.weight"


def _rope(facts: Facts, tensors: Mapping[str, GgufTensor]) -> Config:
    """Both rotary embeddings: that of full attention turns the columns whose factors are one."""
    if rope(facts)["rope_type"] != "default":
        raise ValueError(f"{facts.architecture}.rope.scaling.type is one that the model has not")
    size, turned = facts.count("attention.key_length"), 1.0
    if facts.count("rope.dimension_count", size) != size:
        raise ValueError(f"{facts.architecture}.rope.dimension_count is not the {size} columns of a head")
    if _FACTORS in tensors:
        factors = floats_of(tensors[_FACTORS])
        n_turned = int((factors == 1).sum())
        is_part = (factors[:n_turned] == 1).all() and (factors[n_turned:] > 1e20).all()
        if not is_part or not n_turned or len(factors) != size // 2:
            raise ValueError(f"{_FACTORS} has other factors than those of a part of a head")
        turned = n_turned / len(factors)
    near: dict[str, Any] = {
        "rope_type": "default",
        "rope_theta": facts.positive("rope.freq_base_swa", 10000.0),
    }
    of_near = facts.count("rope.dimension_count_swa", facts.count("attention.key_length_swa"))
    if of_near > facts.count("attention.key_length_swa"):
        raise ValueError(f"{facts.architecture}.rope.dimension_count_swa is more than the columns of a head")
    if of_near < facts.count("attention.key_length_swa"):
        near["partial_rotary_factor"] = of_near / facts.count("attention.key_length_swa")
    far = {
        "rope_type": "proportional",
        "partial_rotary_factor": turned,
        "rope_theta": facts.positive("rope.freq_base", 1_000_000.0),
    }
    return {_FULL: far, _SLIDING: near}


def _number(facts: Facts, key: str) -> int:
    """A number that may be zero, as it is where there is none."""
    found = facts.metadata.get(f"{facts.architecture}.{key}", 0)
    if isinstance(found, bool) or not isinstance(found, int) or found < 0:
        raise ValueError(f"{facts.architecture}.{key} is {found!r}, not a number")
    return found


def _of_layers(facts: Facts, key: str, n_layers: int) -> list[int]:
    """The numbers of all layers, which may be one for all."""
    found = facts.metadata.get(f"{facts.architecture}.{key}")
    numbers = [found] * n_layers if isinstance(found, int) else found
    if not isinstance(numbers, list) or len(numbers) != n_layers:
        raise ValueError(f"{facts.architecture}.{key} is no number for each layer")
    if not all(isinstance(number, int) for number in numbers):
        raise ValueError(f"{facts.architecture}.{key} is no number for each layer")
    return [int(number) for number in numbers]
