"""What of an architecture neither transformers' nor gguf's tables say: parts of its config, the converter's changes.

Each stands in `tools/models/gguf_small_models.py`, of which `gguf_architectures.py` beside it writes a file as
llama.cpp's converter does; a test compares the logits. An architecture that is not here is packed and given back, under
ggml's names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from spqfmt.importers._gguf_changes import AS_STORED, Change, minus_one
from spqfmt.importers._gguf_delta_nets import (
    NEXT_NAMES,
    delta_net_change,
    delta_net_config,
    delta_net_runs,
    next_tokens,
    qwen3_next_change,
    qwen3_next_config,
    qwen3_next_runs,
    qwen3_next_stacks,
)
from spqfmt.importers._gguf_gemma4 import NAMES as GEMMA4_NAMES
from spqfmt.importers._gguf_gemma4 import gemma4_config, unused_keys
from spqfmt.importers._gguf_latent import NAMES as LATENT_NAMES
from spqfmt.importers._gguf_latent import deepseek2_config, deepseek3_config, latent_stacks
from spqfmt.importers._gguf_mixtures import (
    ernie4_5_moe_config,
    glm4_moe_aside,
    glm4_moe_config,
    gpt_oss_config,
    granite_hybrid_change,
    granite_hybrid_config,
    lfm2_config,
    lfm2_moe_config,
    llama4_config,
    minimax_config,
    qwen2_moe_config,
    qwen3_moe_config,
)
from spqfmt.importers._gguf_models import (
    ChangeOf,
    Config,
    Facts,
    as_stored,
    head_size,
    norm_plus_one,
    partial_rope,
    rope,
    rotary,
    whole_rope,
)
from spqfmt.importers._gguf_reader import GgufTensor
from spqfmt.importers._gguf_rope import floats_of, rope_of_factors

Tensors = Mapping[str, GgufTensor]


class Experts(NamedTuple):
    """How transformers has the weights of all experts of a layer, gate and up in one tensor."""

    transposed: bool = False
    """[experts, in, out] instead of [experts, out, in]."""
    pairs: bool = False
    """Gate and up take turns, instead of one after the other."""


_IN_TURN = Experts()
ROPE_FACTORS = "rope_freqs.weight"
_LONG, _SHORT = "rope_factors_long.weight", "rope_factors_short.weight"


def _no_runs(name: str, shape: tuple[int, ...], config: Config) -> list[tuple[int, int]]:
    return []


def _none_aside(name: str, config: Config) -> str:
    return ""


def _no_stacks(name: str, shape: tuple[int, ...], config: Config) -> dict[str, tuple[int, ...]]:
    return {}


def _plain(facts: Facts, tensors: Tensors) -> Config:
    return {"rope_parameters": partial_rope(facts)}


@dataclass(frozen=True)
class Architecture:
    """What is told of one here; `names` and `joined` are by names without the number of the layer."""

    model_type: str
    config: Callable[[Facts, Tensors], Config] = _plain
    change: ChangeOf = as_stored
    names: Mapping[str, str] = field(default_factory=dict)
    """ggml's names of tensors that gguf's table has not, or has otherwise."""
    joined: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """ggml's names of several tensors that one of the model's is."""
    experts: Experts = _IN_TURN
    runs: Callable[[str, tuple[int, ...], Config], list[tuple[int, int]]] = _no_runs
    """Where the model's rows lie among those of the file, run after run: first row and number of rows. Empty where they
    are in the order that `change` says."""
    factors: frozenset[str] = frozenset()
    """Tensors of factors of the rotary embedding that `config` reads."""
    without: frozenset[str] = frozenset()
    """Keys that the metadata of all others have."""
    aside: Callable[[str, Config], str] = _none_aside
    """The name that a tensor gets which transformers' model has no place for and does without; empty for any other."""
    stacks: Callable[[str, tuple[int, ...], Config], dict[str, tuple[int, ...]]] = _no_stacks
    """What the file may have in place of one of the model's tensors, which loaders put together of it."""


def _said(facts: Facts, key: str) -> int | float | str | bool | None:
    value = facts.metadata.get(f"{facts.architecture}.{key}")
    return value if isinstance(value, int | float | str) else None


def _has(facts: Facts, name: str) -> bool:
    return f"blk.0.{name}" in facts.shapes


def _gemma3(facts: Facts, tensors: Tensors) -> Config:
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


def _phi3(facts: Facts, tensors: Tensors) -> Config:
    parameters = partial_rope(facts)
    factors = [tensors.get(name) for name in (_LONG, _SHORT)]
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


def _mistral3(facts: Facts, tensors: Tensors) -> Config:
    if facts.number("attention.temperature_scale", 0.0):
        raise ValueError("mistral3.attention.temperature_scale without YaRN is no model of transformers")
    return _plain(facts, tensors) | {"sliding_window": None}


def _qwen35(facts: Facts, tensors: Tensors) -> Config:
    # Of Mamba, whose keys these are, the inner size is another one.
    return delta_net_config(facts) | {"intermediate_size": facts.count("feed_forward_length")}


def _qwen35_moe(facts: Facts, tensors: Tensors) -> Config:
    return qwen2_moe_config(facts, tensors) | delta_net_config(facts)


def _granite(facts: Facts, tensors: Tensors) -> Config:
    return _plain(facts, tensors) | {"attention_bias": _has(facts, "attn_q.bias")}


def _hunyuan(facts: Facts, tensors: Tensors) -> Config:
    # Whatever its base was stretched by, the file has it stretched.
    return {
        "attention_bias": _has(facts, "attn_q.bias"),
        "head_dim": head_size(facts),
        "rope_parameters": whole_rope(facts),
    }


def _with_biases(facts: Facts, tensors: Tensors) -> Config:
    return _plain(facts, tensors) | {
        "attention_bias": _has(facts, "attn_q.bias"),
        "attention_out_bias": _has(facts, "attn_output.bias"),
        "mlp_bias": _has(facts, "ffn_up.bias"),
    }


def _stablelm(facts: Facts, tensors: Tensors) -> Config:
    return _plain(facts, tensors) | {
        "qk_layernorm": _has(facts, "attn_q_norm.weight"),
        "use_parallel_residual": not _has(facts, "ffn_norm.weight"),
        "use_qkv_bias": _has(facts, "attn_q.bias"),
    }


def _bloom(facts: Facts, tensors: Tensors) -> Config:
    return {}


def _gptneox(facts: Facts, tensors: Tensors) -> Config:
    return _plain(facts, tensors) | {
        "attention_bias": _has(facts, "attn_qkv.bias"),
        "use_parallel_residual": bool(facts.metadata.get("gptneox.use_parallel_residual", True)),
    }


def _smollm3(facts: Facts, tensors: Tensors) -> Config:
    return _granite(facts, tensors) | {"mlp_bias": _has(facts, "ffn_up.bias")}


def _exaone4(facts: Facts, tensors: Tensors) -> Config:
    plain, factors = _plain(facts, tensors), tensors.get(ROPE_FACTORS)
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


def _fused(name: str, shape: tuple[int, ...], config: Config) -> Change:
    """Queries, keys and values of a head side by side, which the converter puts one after the other."""
    if ".query_key_value." not in name:
        return AS_STORED
    heads = config.get("n_head") or config["num_attention_heads"]
    return Change(rows=((heads, 3, shape[0] // heads // 3), (1, 0, 2)))


def _falcon(facts: Facts, tensors: Tensors) -> Config:
    n_keys = facts.count("attention.head_count_kv", facts.count("attention.head_count"))
    return _plain(facts, tensors) | {
        "multi_query": n_keys == 1,
        "new_decoder_architecture": _has(facts, "attn_norm_2.weight"),
        "num_kv_heads": n_keys,
    }


def _by_group(name: str, shape: tuple[int, ...], config: Config) -> list[tuple[int, int]]:
    """Falcon's queries of a group, its key, its value; the file has all queries, then all keys, then all values."""
    if ".query_key_value." not in name:
        return []
    heads, groups = config["num_attention_heads"], config["num_kv_heads"]
    size, each = shape[0] // (heads + 2 * groups), heads // groups
    runs = ([(g * each, each), (heads + g, 1), (heads + groups + g, 1)] for g in range(groups))
    return [(first * size, n * size) for run in runs for first, n in run]


def _olmo(facts: Facts, tensors: Tensors) -> Config:
    return _plain(facts, tensors) | {"clip_qkv": _said(facts, "attention.clamp_kqv")}


def _nemotron(name: str, shape: tuple[int, ...], config: Config) -> Change:
    return Change(values=minus_one) if "norm.weight" in name else AS_STORED


def _mamba(facts: Facts, tensors: Tensors) -> Config:
    return {"expand": max(1, facts.count("ssm.inner_size") // facts.count("embedding_length"))}


def _mamba_change(name: str, shape: tuple[int, ...], config: Config) -> Change:
    return Change(values=lambda stored: (-stored).log()) if name.endswith(".A_log") else AS_STORED


def _ministral3(facts: Facts, tensors: Tensors) -> Config:
    scale = facts.number("rope.scaling.yarn_log_multiplier", 0.0)
    scales = {"mscale": scale, "mscale_all_dim": scale} if scale else {}
    beta = facts.number("attention.temperature_scale", 0.0)
    return {
        "rope_parameters": {**whole_rope(facts), **scales, "llama_4_scaling_beta": beta},
        "sliding_window": None,
    }


_GATE_UP = ("blk.{}.ffn_gate_exps", "blk.{}.ffn_up_exps")
_STEP_BIAS = {"model.layers.{}.mamba.dt_bias": "blk.{}.ssm_dt"}
_GRANITE_HYBRID: Mapping[str, Any] = {
    "config": granite_hybrid_config,
    "change": granite_hybrid_change,
    "names": _STEP_BIAS,
    "without": frozenset({"attention.head_count_kv"}),
}
_DELTA_NET: Mapping[str, Any] = {
    "change": delta_net_change,
    "names": {"model.layers.{}.linear_attn.dt_bias": "blk.{}.ssm_dt"},
    "runs": delta_net_runs,
    "aside": next_tokens,
}
ARCHITECTURES: Mapping[str, Architecture] = {
    "arcee": Architecture("arcee", _smollm3, rotary),
    "bloom": Architecture(
        "bloom", _bloom, _fused, without=frozenset({"context_length", "feed_forward_length"})
    ),
    "cohere2": Architecture("cohere2", _granite),
    "command-r": Architecture("cohere", _granite),
    "deepseek2": Architecture("deepseek_v2", deepseek2_config, aside=glm4_moe_aside, stacks=latent_stacks),
    "deepseek3": Architecture(
        "deepseek_v3", deepseek3_config, names=LATENT_NAMES, aside=glm4_moe_aside, stacks=latent_stacks
    ),
    "exaone4": Architecture("exaone4", _exaone4, factors=frozenset({ROPE_FACTORS})),
    "ernie4_5": Architecture("ernie4_5"),
    "ernie4_5-moe": Architecture(
        "ernie4_5_moe",
        ernie4_5_moe_config,
        names={"model.layers.{}.mlp.moe_statics.e_score_correction_bias": "blk.{}.exp_probs_b"},
    ),
    "falcon": Architecture("falcon", _falcon, runs=_by_group),
    "gemma3": Architecture("gemma3_text", _gemma3, norm_plus_one),
    "gemma4": Architecture(
        "gemma4_text",
        gemma4_config,
        names=GEMMA4_NAMES,
        joined={"model.layers.{}.experts.gate_up_proj": _GATE_UP},
        factors=frozenset({ROPE_FACTORS}),
        without=frozenset({"feed_forward_length"}),
        aside=unused_keys,
    ),
    "glm4": Architecture("glm4", _granite),
    "glm4moe": Architecture(
        "glm4_moe",
        glm4_moe_config,
        names={"model.layers.{}.mlp.gate.e_score_correction_bias": "blk.{}.exp_probs_b"},
        aside=glm4_moe_aside,
    ),
    "gpt-oss": Architecture("gpt_oss", gpt_oss_config, experts=Experts(transposed=True, pairs=True)),
    "gptneox": Architecture("gpt_neox", _gptneox, _fused),
    "granite": Architecture("granite", _granite, rotary),
    "granitemoe": Architecture(
        "granitemoe", _granite, rotary, joined={"model.layers.{}.block_sparse_moe.input_linear": _GATE_UP}
    ),
    "granitehybrid": Architecture(
        "granitemoehybrid",
        joined={
            "model.layers.{}.block_sparse_moe.input_linear": _GATE_UP,
            "model.layers.{}.shared_mlp.input_linear": ("blk.{}.ffn_gate_shexp", "blk.{}.ffn_up_shexp"),
        },
        **_GRANITE_HYBRID,
    ),
    "granitehybrid_dense": Architecture(
        "granitemoehybrid",
        joined={"model.layers.{}.shared_mlp.input_linear": ("blk.{}.ffn_gate", "blk.{}.ffn_up")},
        **{
            **_GRANITE_HYBRID,
            "names": {**_STEP_BIAS, "model.layers.{}.shared_mlp.output_linear": "blk.{}.ffn_down"},
        },
    ),
    "hunyuan-dense": Architecture("hunyuan_v1_dense", _hunyuan),
    "lfm2": Architecture("lfm2", lfm2_config, without=frozenset({"attention.head_count_kv"})),
    "lfm2moe": Architecture("lfm2_moe", lfm2_moe_config, without=frozenset({"attention.head_count_kv"})),
    "llama4": Architecture(
        "llama4_text", llama4_config, experts=Experts(transposed=True), factors=frozenset({ROPE_FACTORS})
    ),
    "mamba": Architecture(
        "mamba", _mamba, _mamba_change, without=frozenset({"attention.head_count", "feed_forward_length"})
    ),
    "minimax-m2": Architecture(
        "minimax_m2",
        minimax_config,
        names={"model.layers.{}.block_sparse_moe.e_score_correction_bias": "blk.{}.exp_probs_b"},
    ),
    "ministral3": Architecture("ministral3", _ministral3, rotary),
    "mistral3": Architecture("mistral", _mistral3, rotary),
    "mixtral": Architecture("mixtral", change=rotary),
    "nemotron": Architecture("nemotron", _with_biases, _nemotron),
    "olmo": Architecture("olmo", _olmo, rotary),
    "olmo2": Architecture("olmo2", _granite),
    "olmoe": Architecture("olmoe", _granite),
    "phi2": Architecture("phi"),
    "phi3": Architecture("phi3", _phi3, factors=frozenset({_LONG, _SHORT})),
    "qwen2moe": Architecture("qwen2_moe", qwen2_moe_config),
    "qwen3moe": Architecture("qwen3_moe", qwen3_moe_config),
    # Its texts, whose tokens have one place each.
    "qwen3vlmoe": Architecture("qwen3_moe", qwen3_moe_config),
    "qwen35": Architecture("qwen3_5_text", _qwen35, **_DELTA_NET),
    "qwen35moe": Architecture(
        "qwen3_5_moe_text", _qwen35_moe, **_DELTA_NET, without=frozenset({"feed_forward_length"})
    ),
    "qwen3next": Architecture(
        "qwen3_next",
        qwen3_next_config,
        qwen3_next_change,
        names=NEXT_NAMES,
        runs=qwen3_next_runs,
        without=frozenset({"feed_forward_length"}),
        aside=next_tokens,
        stacks=qwen3_next_stacks,
    ),
    "seed_oss": Architecture("seed_oss", _with_biases),
    "smollm3": Architecture("smollm3", _smollm3, rotary),
    "stablelm": Architecture("stablelm", _stablelm),
    "starcoder2": Architecture("starcoder2"),
}
"""What is known by `general.architecture`; a Llama with experts is "mixtral", a DeepSeek with a sigmoid
"deepseek3", a Mistral 3 with YaRN "ministral3", and a
hybrid of Granite without experts "granitehybrid_dense"."""
