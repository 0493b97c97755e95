"""What of an architecture neither transformers' nor gguf's tables say: parts of its config, the converter's changes.

Each stands in `tools/models/gguf_small_models.py`, of which `gguf_architectures.py` beside it writes a file as
llama.cpp's converter does; a test compares the logits. An architecture that is not here is packed and given back, under
ggml's names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from spqfmt.importers._gguf_delta_nets import (
    NEXT_NAMES,
    delta_net_change,
    delta_net_runs,
    next_tokens,
    qwen3_next_change,
    qwen3_next_config,
    qwen3_next_runs,
    qwen3_next_stacks,
    qwen35_config,
    qwen35_moe_config,
)
from spqfmt.importers._gguf_dense import (
    LONG_FACTORS,
    ROPE_FACTORS,
    SHORT_FACTORS,
    Tensors,
    biased_config,
    bloom_config,
    exaone4_config,
    falcon_config,
    falcon_runs,
    fused_change,
    gemma3_config,
    gptneox_config,
    granite_config,
    hunyuan_config,
    mamba_change,
    mamba_config,
    ministral3_config,
    mistral3_config,
    nemotron_change,
    olmo_config,
    phi3_config,
    plain_config,
    smollm3_config,
    stablelm_config,
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
    norm_plus_one,
    rotary,
)
from spqfmt.importers._gguf_nemotron import NAMES as NEMOTRON_NAMES
from spqfmt.importers._gguf_nemotron import nemotron_hybrid_change, nemotron_hybrid_config
from spqfmt.importers._gguf_t5 import t5_config, unused_distances


class Experts(NamedTuple):
    """How transformers has the weights of all experts of a layer, gate and up in one tensor."""

    transposed: bool = False
    """[experts, in, out] instead of [experts, out, in]."""
    pairs: bool = False
    """Gate and up take turns, instead of one after the other."""


_IN_TURN = Experts()


def _no_runs(name: str, shape: tuple[int, ...], config: Config) -> list[tuple[int, int]]:
    return []


def _none_aside(name: str, config: Config) -> str:
    return ""


def _no_stacks(name: str, shape: tuple[int, ...], config: Config) -> dict[str, tuple[int, ...]]:
    return {}


@dataclass(frozen=True)
class Architecture:
    """What is told of one here; `names` and `joined` are by names without the number of the layer."""

    model_type: str
    config: Callable[[Facts, Tensors], Config] = plain_config
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


_GATE_UP = ("blk.{}.ffn_gate_exps", "blk.{}.ffn_up_exps")
_STEP_BIAS = {"model.layers.{}.mamba.dt_bias": "blk.{}.ssm_dt"}
_GRANITE_HYBRID: Mapping[str, Any] = {
    "config": granite_hybrid_config,
    "change": granite_hybrid_change,
    "names": _STEP_BIAS,
    "without": frozenset({"attention.head_count_kv"}),
}
_NEMOTRON_HYBRID: Mapping[str, Any] = {
    "config": nemotron_hybrid_config,
    "change": nemotron_hybrid_change,
    "names": NEMOTRON_NAMES,
    "without": frozenset({"attention.head_count_kv", "feed_forward_length"}),
}
_DELTA_NET: Mapping[str, Any] = {
    "change": delta_net_change,
    "names": {"model.layers.{}.linear_attn.dt_bias": "blk.{}.ssm_dt"},
    "runs": delta_net_runs,
    "aside": next_tokens,
}
ARCHITECTURES: Mapping[str, Architecture] = {
    "arcee": Architecture("arcee", smollm3_config, rotary),
    "bloom": Architecture(
        "bloom", bloom_config, fused_change, without=frozenset({"context_length", "feed_forward_length"})
    ),
    "cohere2": Architecture("cohere2", granite_config),
    "command-r": Architecture("cohere", granite_config),
    "deepseek2": Architecture("deepseek_v2", deepseek2_config, aside=glm4_moe_aside, stacks=latent_stacks),
    "deepseek3": Architecture(
        "deepseek_v3", deepseek3_config, names=LATENT_NAMES, aside=glm4_moe_aside, stacks=latent_stacks
    ),
    "exaone4": Architecture("exaone4", exaone4_config, factors=frozenset({ROPE_FACTORS})),
    "ernie4_5": Architecture("ernie4_5"),
    "ernie4_5-moe": Architecture(
        "ernie4_5_moe",
        ernie4_5_moe_config,
        names={"model.layers.{}.mlp.moe_statics.e_score_correction_bias": "blk.{}.exp_probs_b"},
    ),
    "falcon": Architecture("falcon", falcon_config, runs=falcon_runs),
    "gemma3": Architecture("gemma3_text", gemma3_config, norm_plus_one),
    "gemma4": Architecture(
        "gemma4_text",
        gemma4_config,
        names=GEMMA4_NAMES,
        joined={"model.layers.{}.experts.gate_up_proj": _GATE_UP},
        factors=frozenset({ROPE_FACTORS}),
        without=frozenset({"feed_forward_length"}),
        aside=unused_keys,
    ),
    "glm4": Architecture("glm4", granite_config),
    "glm4moe": Architecture(
        "glm4_moe",
        glm4_moe_config,
        names={"model.layers.{}.mlp.gate.e_score_correction_bias": "blk.{}.exp_probs_b"},
        aside=glm4_moe_aside,
    ),
    "gpt-oss": Architecture("gpt_oss", gpt_oss_config, experts=Experts(transposed=True, pairs=True)),
    "gptneox": Architecture("gpt_neox", gptneox_config, fused_change),
    "granite": Architecture("granite", granite_config, rotary),
    "granitemoe": Architecture(
        "granitemoe",
        granite_config,
        rotary,
        joined={"model.layers.{}.block_sparse_moe.input_linear": _GATE_UP},
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
    "hunyuan-dense": Architecture("hunyuan_v1_dense", hunyuan_config),
    "lfm2": Architecture("lfm2", lfm2_config, without=frozenset({"attention.head_count_kv"})),
    "lfm2moe": Architecture("lfm2_moe", lfm2_moe_config, without=frozenset({"attention.head_count_kv"})),
    "llama4": Architecture(
        "llama4_text", llama4_config, experts=Experts(transposed=True), factors=frozenset({ROPE_FACTORS})
    ),
    "mamba": Architecture(
        "mamba",
        mamba_config,
        mamba_change,
        without=frozenset({"attention.head_count", "feed_forward_length"}),
    ),
    "minimax-m2": Architecture(
        "minimax_m2",
        minimax_config,
        names={"model.layers.{}.block_sparse_moe.e_score_correction_bias": "blk.{}.exp_probs_b"},
    ),
    "ministral3": Architecture("ministral3", ministral3_config, rotary),
    "mistral3": Architecture("mistral", mistral3_config, rotary),
    "mixtral": Architecture("mixtral", change=rotary),
    "nemotron": Architecture("nemotron", biased_config, nemotron_change),
    "nemotron_h": Architecture("nemotron_h", **_NEMOTRON_HYBRID),
    "nemotron_h_moe": Architecture("nemotron_h", **_NEMOTRON_HYBRID),
    "olmo": Architecture("olmo", olmo_config, rotary),
    "olmo2": Architecture("olmo2", granite_config),
    "olmoe": Architecture("olmoe", granite_config),
    "phi2": Architecture("phi"),
    "phi3": Architecture("phi3", phi3_config, factors=frozenset({LONG_FACTORS, SHORT_FACTORS})),
    "qwen2moe": Architecture("qwen2_moe", qwen2_moe_config),
    "qwen3moe": Architecture("qwen3_moe", qwen3_moe_config),
    # Its texts, whose tokens have one place each.
    "qwen3vlmoe": Architecture("qwen3_moe", qwen3_moe_config),
    "qwen35": Architecture("qwen3_5_text", qwen35_config, **_DELTA_NET),
    "qwen35moe": Architecture(
        "qwen3_5_moe_text", qwen35_moe_config, **_DELTA_NET, without=frozenset({"feed_forward_length"})
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
    "seed_oss": Architecture("seed_oss", biased_config),
    "smollm3": Architecture("smollm3", smollm3_config, rotary),
    "stablelm": Architecture("stablelm", stablelm_config),
    "starcoder2": Architecture("starcoder2"),
    "t5": Architecture("t5", t5_config, aside=unused_distances),
    "umt5": Architecture("umt5", t5_config, aside=unused_distances),
}
"""What is known by `general.architecture`; a Llama with experts is "mixtral", a DeepSeek with a sigmoid
"deepseek3", a Mistral 3 with YaRN "ministral3", a T5 whose blocks all have distances "umt5", and a
hybrid of Granite without experts "granitehybrid_dense"."""
