"""What llama.cpp's converter does to tensors of some architectures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from gguf_small_configs import HEAD, KEYS, VALUES_OF_A_KEY

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


def next_delta_net(name: str, value: Any, config: Any) -> Any:
    """Norms plus one, A as its exponential; queries, keys, values and gates by heads: [heads, rows, columns]."""
    if name.endswith("norm.weight") and not name.endswith("linear_attn.norm.weight"):
        return value + 1
    if name.endswith("A_log"):
        with np.errstate(over="ignore"):  # of numbers that say where a value went
            return -np.exp(value)
    if name.endswith("in_proj_qkvz.weight"):
        return value.reshape(config.linear_num_key_heads, -1, value.shape[-1])
    return value.squeeze(1) if name.endswith("conv1d.weight") else value


def next_delta_net_parts(name: str, value: Any) -> list[tuple[str, Any]]:
    """Queries of all heads, their keys and values; apart from these the gates."""
    if not name.endswith("in_proj_qkvz.weight"):
        return delta_net_parts(name, value)
    layer, each = name.split(".")[2], VALUES_OF_A_KEY * HEAD
    cuts = [HEAD, 2 * HEAD, 2 * HEAD + each]
    *mixed, gates = (part.reshape(-1, value.shape[-1]) for part in np.split(value, cuts, axis=1))
    return [(f"blk.{layer}.attn_qkv.weight", np.concatenate(mixed)), (f"blk.{layer}.attn_gate.weight", gates)]


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


def nemotron_hybrid(name: str, value: Any, config: Any) -> Any:
    """A as its exponential, it and D as columns, the norm by groups."""
    if name.endswith(("A_log", "mixer.D")):
        with np.errstate(over="ignore"):  # of numbers that say where a value went
            return (-np.exp(value) if name.endswith("A_log") else value).reshape(-1, 1)
    if name.endswith("mixer.norm.weight"):
        return value.reshape(config.n_groups, -1)
    return value.squeeze() if "conv1d.weight" in name else value


def nemotron_hybrid_parts(name: str, value: Any) -> list[tuple[str, Any]]:
    """Name the step's bias, the correction of the router and experts as ggml does."""
    layer, _, rest = name.removeprefix("backbone.layers.").partition(".mixer.")
    names = {
        "dt_bias": "ssm_dt.bias",
        "gate.e_score_correction_bias": "exp_probs_b.bias",
        "experts.up_proj": "ffn_up_exps.weight",
        "experts.down_proj": "ffn_down_exps.weight",
    }
    rest = rest.removesuffix(".weight") if rest.startswith("experts.") else rest
    return [(f"blk.{layer}.{names[rest]}", value)] if rest in names else [(name, value)]


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


def by_head(name: str, value: Any, config: Any) -> Any:
    """Keys and values out of the latent vector, by heads: [heads, keys and values, rank]."""
    heads = config.num_attention_heads
    return value.reshape(heads, -1, value.shape[-1]) if name.endswith("kv_b_proj.weight") else value


def latent_parts(name: str, value: Any) -> list[tuple[str, Any]]:
    """Keys apart from values, and turned."""
    if not name.endswith("kv_b_proj.weight"):
        return corrected_parts(name, value)
    stem = name.removesuffix("kv_b_proj.weight")
    keys, values = value[:, :KEYS], value[:, KEYS:]
    return [(f"{stem}k_b_proj.weight", keys.swapaxes(1, 2)), (f"{stem}v_b_proj.weight", values)]
