"""Hybrids of attention and gated delta nets (Qwen3.5, Qwen3 Next) as GGUF has them.

llama.cpp takes the value heads of a delta net in turn, one of each key head; transformers has those of a key head side
by side. That is the order of rows of what gives values, and of columns of what takes them. Of Qwen3 Next they lie
as in transformers, but rows of queries, keys, values and gates, which are mixed there, lie apart:
`spqfmt.models.stacked_heads` puts them together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from spqfmt.importers._gguf_changes import AS_STORED, Change, minus_one
from spqfmt.importers._gguf_mixtures import qwen2_moe_config, qwen3_moe_config, state_heads
from spqfmt.importers._gguf_models import Config, Facts, head_size, next_layers, partial_rope
from spqfmt.importers._gguf_reader import GgufTensor

if TYPE_CHECKING:
    import torch

NEXT_NAMES = {
    "model.layers.{}.linear_attn.dt_bias": "blk.{}.ssm_dt",
    **{f"model.layers.{{}}.linear_attn.in_proj_{kind}": "blk.{}.attn_qkv" for kind in "qkv"},
    "model.layers.{}.linear_attn.in_proj_z": "blk.{}.attn_gate",
}


def delta_net_config(facts: Facts) -> Config:
    """What the metadata say of layers, heads and the rotary embedding. Raises ValueError for what they lack."""
    n_layers = facts.count("block_count") - next_layers(facts)
    n_values, size = state_heads(facts)
    if n_values % facts.count("ssm.group_count"):
        raise ValueError(f"{facts.architecture}.ssm.time_step_rank is no multiple of ssm.group_count")
    rope = {"partial_rotary_factor": 1.0, **partial_rope(facts)}
    sections = _sections(facts)
    if sections:
        rope |= {"mrope_section": sections, "mrope_interleaved": True}
    return {
        "head_dim": head_size(facts),
        "layer_types": [
            "full_attention" if f"blk.{layer}.attn_q.weight" in facts.shapes else "linear_attention"
            for layer in range(n_layers)
        ],
        "linear_conv_kernel_dim": facts.count("ssm.conv_kernel"),
        "linear_key_head_dim": facts.count("ssm.state_size"),
        "linear_num_key_heads": facts.count("ssm.group_count"),
        "linear_num_value_heads": n_values,
        "linear_value_head_dim": size,
        "num_hidden_layers": n_layers,
        "rope_parameters": rope,
    }


def qwen35_config(facts: Facts, tensors: Mapping[str, GgufTensor]) -> Config:
    """What the metadata say beyond the usual. Raises ValueError for what they lack."""
    # Of Mamba, whose keys these are, the inner size is another one.
    return delta_net_config(facts) | {"intermediate_size": facts.count("feed_forward_length")}


def qwen35_moe_config(facts: Facts, tensors: Mapping[str, GgufTensor]) -> Config:
    """What the metadata say beyond the usual. Raises ValueError for what they lack."""
    return qwen2_moe_config(facts, tensors) | delta_net_config(facts)


def _sections(facts: Facts) -> list[int]:
    """How many pairs of columns turn by time, height and width, which are all the same of text."""
    found = facts.metadata.get(f"{facts.architecture}.rope.dimension_sections", [])
    if not isinstance(found, list) or not all(type(size) is int and size >= 0 for size in found):
        raise ValueError(f"{facts.architecture}.rope.dimension_sections is no list of sizes")
    sizes = [size for size in found if size]
    if sizes and len(sizes) != 3:
        raise ValueError(f"{facts.architecture}.rope.dimension_sections has {len(sizes)} sizes, not 3")
    return sizes


def next_tokens(name: str, config: Config) -> str:
    """Name a tensor of the layers that guess tokens ahead, which are after the model's own; empty for any other."""
    block = re.match(r"blk\.(\d+)\.", name)
    return f"mtp.{name}" if block is not None and int(block[1]) >= config["num_hidden_layers"] else ""


def delta_net_change(name: str, shape: tuple[int, ...], config: Config) -> Change:
    """Norms plus one, but for that of a delta net; A as its exponential; value heads in another order."""
    if name.endswith("norm.weight") and not name.endswith("linear_attn.norm.weight"):
        return Change(values=minus_one)
    heads, of_values = _heads(config), (*_heads(config), config["linear_value_head_dim"])
    if name.endswith("linear_attn.A_log"):
        return Change(rows=(heads, (1, 0)), values=_logarithm)
    if name.endswith(("linear_attn.dt_bias", "linear_attn.in_proj_a.weight", "linear_attn.in_proj_b.weight")):
        return Change(rows=(heads, (1, 0)))
    if name.endswith("linear_attn.in_proj_z.weight"):
        return Change(rows=(of_values, (1, 0, 2)))
    if name.endswith("linear_attn.out_proj.weight") and min(heads) > 1:
        return Change(columns=(of_values, (1, 0, 2)))
    return AS_STORED


def delta_net_runs(name: str, shape: tuple[int, ...], config: Config) -> list[tuple[int, int]]:
    """Rows of queries and keys as they are, then those of each value head; nothing where all are in order."""
    keys, each = _heads(config)
    is_mixed = name.endswith(("linear_attn.in_proj_qkv.weight", "linear_attn.conv1d.weight"))
    if not is_mixed or min(keys, each) == 1:
        return []
    before, size = 2 * keys * config["linear_key_head_dim"], config["linear_value_head_dim"]
    places = (number * keys + key for key in range(keys) for number in range(each))
    return [(0, before), *((before + place * size, size) for place in places)]


def qwen3_next_config(facts: Facts, tensors: Mapping[str, GgufTensor]) -> Config:
    """What the metadata say of Qwen3 Next. Raises ValueError for what they lack."""
    return qwen3_moe_config(facts, tensors) | delta_net_config(facts)


def qwen3_next_change(name: str, shape: tuple[int, ...], config: Config) -> Change:
    """Norms plus one, but for that of a delta net; A as its exponential."""
    if name.endswith("norm.weight") and not name.endswith("linear_attn.norm.weight"):
        return Change(values=minus_one)
    return Change(values=_logarithm) if name.endswith("linear_attn.A_log") else AS_STORED


def qwen3_next_stacks(name: str, shape: tuple[int, ...], config: Config) -> dict[str, tuple[int, ...]]:
    """The names and shapes of the stacks that a matrix is in the file; none for any other tensor."""
    before = name.removesuffix("qkvz.weight")
    if before == name:
        return {}
    keys, each = _heads(config)
    of_keys = (keys, config["linear_key_head_dim"], shape[-1])
    of_values = (keys, each * config["linear_value_head_dim"], shape[-1])
    kinds = {"q": of_keys, "k": of_keys, "v": of_values, "z": of_values}
    return {f"{before}{kind}.weight": of_kind for kind, of_kind in kinds.items()}


def qwen3_next_runs(name: str, shape: tuple[int, ...], config: Config) -> list[tuple[int, int]]:
    """Rows of queries, keys or values in the tensor that has all three; nothing of any other."""
    n_keys = config["linear_num_key_heads"] * config["linear_key_head_dim"]
    first = {"in_proj_q.weight": 0, "in_proj_k.weight": n_keys, "in_proj_v.weight": 2 * n_keys}
    found = first.get(name.rpartition("linear_attn.")[2])
    return [] if found is None else [(found, shape[0] * shape[1])]


def _heads(config: Config) -> tuple[int, int]:
    """Key heads, and value heads of each."""
    keys = config["linear_num_key_heads"]
    return keys, config["linear_num_value_heads"] // keys


def _logarithm(stored: torch.Tensor) -> torch.Tensor:
    return (-stored).log()
