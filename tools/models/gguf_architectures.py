"""Small models of transformers as GGUF files, written as llama.cpp's converter writes them, for the importer's tests.

    python tools/models/gguf_architectures.py NAME FILE.gguf [--quantize Q8_0]

Names of tensors are those that the package gguf gives; what the converter does to a tensor beyond that is written here,
forwards, and shares nothing with what the importer takes back.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from transformers.core_model_loading import revert_weight_conversion

VOCABULARY, _CONTEXT = 264, 128
_SEED = 5
_DENSE: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": _CONTEXT,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_GROUPED = {**_DENSE, "num_key_value_heads": 2}
_UNTIED = {**_GROUPED, "tie_word_embeddings": False}
_EXPERTS = {**_UNTIED, "num_experts_per_tok": 2}
_ROPE = {"rope_type": "default", "rope_theta": 20000.0}
_SCALED = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 1.0,
    "original_max_position_embeddings": 32,
}
_MULTIPLIERS = {
    "attention_multiplier": 0.2,
    "embedding_multiplier": 3.0,
    "logits_scaling": 2.0,
    "residual_multiplier": 0.5,
}

_AS_FLOATS = re.compile(r"norm|bias|_inp|ssm_a|conv1d")
"""Tensors that llama.cpp never has in blocks."""
Arrays = Mapping[str, Any]
Pieces = Iterator[tuple[str, Any]]
"""ggml's names of what one tensor becomes, with the values."""


@dataclass(frozen=True)
class Small:
    """A model: its config, what its metadata have beside the usual, and what is done to its tensors."""

    architecture: str
    config: Callable[[], Any]
    metadata: Callable[[gguf.GGUFWriter, Any], None] = lambda writer, config: None
    change: Callable[[str, Any, Any], Any] = lambda name, value, config: value
    split: Callable[[str, Any], list[tuple[str, Any]]] = lambda name, value: [(name, value)]
    """What one tensor of the checkpoint becomes before it is named."""


def _permuted(name: str, value: Any, config: Any) -> Any:
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


def _plus_one(name: str, value: Any, config: Any) -> Any:
    return value + 1 if name.endswith("norm.weight") else value


def _nemotron(name: str, value: Any, config: Any) -> Any:
    return value + 1 if "norm.weight" in name else value


def _unfused(name: str, value: Any, config: Any) -> Any:
    """Queries of all heads, then keys, then values."""
    if "query_key_value" not in name:
        return value
    heads = config.num_attention_heads
    by_head = value.reshape(heads, 3, value.shape[0] // heads // 3, *value.shape[1:])
    return np.concatenate([by_head[:, k].reshape(-1, *value.shape[1:]) for k in range(3)])


def _by_kind(name: str, value: Any, config: Any) -> Any:
    """Queries of all groups, then their keys, then their values."""
    if "query_key_value" not in name:
        return value
    heads, groups = config.num_attention_heads, config.num_kv_heads if config.new_decoder_architecture else 1
    size = config.hidden_size // heads
    by_group = value.reshape(groups, heads // groups + 2, size, -1)
    kinds = (by_group[:, :-2], by_group[:, -2], by_group[:, -1])
    return np.concatenate([kind.reshape(-1, value.shape[-1]) for kind in kinds])


def _mamba(name: str, value: Any, config: Any) -> Any:
    if name.endswith("A_log"):
        with np.errstate(over="ignore"):  # of numbers that say where a value went
            return -np.exp(value)
    return value.squeeze() if "conv1d.weight" in name else value


def _squeezed(name: str, value: Any, config: Any) -> Any:
    if name.endswith("conv.conv.weight"):
        return value.squeeze(1)
    return value


def _gpt_oss_parts(name: str, value: Any) -> list[tuple[str, Any]]:
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


def _llama4_parts(name: str, value: Any) -> list[tuple[str, Any]]:
    if name.endswith("experts.gate_up_proj"):
        halves = np.split(value.swapaxes(1, 2), 2, axis=1)
        return [
            (f"{name.removesuffix('gate_up_proj')}{half}_proj.weight", halves[k])
            for k, half in enumerate(("gate", "up"))
        ]
    return (
        [(f"{name}.weight", value.swapaxes(1, 2))] if name.endswith("experts.down_proj") else [(name, value)]
    )


def _granite_parts(name: str, value: Any) -> list[tuple[str, Any]]:
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


def _minimax_parts(name: str, value: Any) -> list[tuple[str, Any]]:
    is_correction = name.endswith(".e_score_correction_bias")
    return [(f"blk.{name.split('.')[2]}.exp_probs_b.bias" if is_correction else name, value)]


def _clamped(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_clamp_kqv(config.clip_qkv)


def _yarn(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_sliding_window(config.sliding_window)
    writer.add_expert_feed_forward_length(config.intermediate_size)
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(config.rope_parameters["factor"])
    writer.add_rope_scaling_orig_ctx_len(config.rope_parameters["original_max_position_embeddings"])


def _sliding(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_sliding_window(config.sliding_window)


def _gemma3(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_sliding_window(config.sliding_window)
    writer.add_rope_freq_base(config.rope_parameters["full_attention"]["rope_theta"])


def _phi3(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_sliding_window(config.sliding_window or 0)
    writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
    for which in ("long", "short"):
        factors = config.rope_parameters.get(f"{which}_factor")
        if factors:
            writer.add_tensor(f"rope_factors_{which}.weight", np.array(factors, np.float32))


def _experts(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)


def _shared(writer: gguf.GGUFWriter, config: Any) -> None:
    _experts(writer, config)
    writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)


def _llama4(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_interleave_moe_layer_step(config.interleave_moe_layer_step)
    writer.add_expert_feed_forward_length(config.intermediate_size)
    writer.add_rope_dimension_count(config.head_dim)
    scaled = config.rope_parameters
    if scaled["rope_type"] == "llama3":
        frequencies = 1 / scaled["rope_theta"] ** (np.arange(0, config.head_dim, 2) / config.head_dim)
        is_long = 2 * np.pi / frequencies > scaled["original_max_position_embeddings"]
        writer.add_tensor("rope_freqs.weight", np.where(is_long, scaled["factor"], 1.0).astype(np.float32))


def _granite(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_attention_scale(config.attention_multiplier)
    writer.add_embedding_scale(config.embedding_multiplier)
    writer.add_residual_scale(config.residual_multiplier)
    writer.add_logit_scale(config.logits_scaling)


def _cohere(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_logit_scale(config.logit_scale)
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)


def _partly_turned(writer: gguf.GGUFWriter, config: Any) -> None:
    size = config.hidden_size // config.num_attention_heads
    size = getattr(config, "head_dim", None) or size
    writer.add_rope_dimension_count(int(size * config.rope_parameters["partial_rotary_factor"]))
    if hasattr(config, "use_parallel_residual"):
        writer.add_parallel_residual(config.use_parallel_residual)


def _minimax(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_expert_feed_forward_length(config.intermediate_size)
    writer.add_rope_dimension_count(int(config.head_dim * config.rope_parameters["partial_rotary_factor"]))
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)


def _state_space(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_ssm_conv_kernel(config.conv_kernel)
    writer.add_ssm_inner_size(config.intermediate_size)
    writer.add_ssm_state_size(config.state_size)
    writer.add_ssm_time_step_rank(config.time_step_rank)


def _lfm2(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_shortconv_l_cache(config.conv_L_cache)
    n = config.num_key_value_heads
    writer.add_head_count_kv([n if kind == "full_attention" else 0 for kind in config.layer_types])


def _of(config_class: str, **options: Any) -> Callable[[], Any]:
    return lambda: getattr(transformers, config_class)(**options)


_HALF = {"rope_type": "default", "rope_theta": 20000.0, "partial_rotary_factor": 0.5}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 20000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
}
_LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "long_factor": [1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
    "original_max_position_embeddings": 24,
}
_LLAMA4 = {
    **_EXPERTS,
    "num_experts_per_tok": 1,
    "head_dim": 16,
    "intermediate_size": 32,
    "intermediate_size_mlp": 96,
    "num_local_experts": 4,
    "interleave_moe_layer_step": 2,
    "rope_parameters": {"rope_type": "llama3", "rope_theta": 20000.0, **_SCALED},
}
_FALCON = {**_DENSE, "ffn_hidden_size": 256}
MODELS: Mapping[str, Small] = {
    "arcee": Small("arcee", _of("ArceeConfig", **_UNTIED, rope_parameters=_ROPE), change=_permuted),
    "bloom": Small(
        "bloom",
        _of(
            "BloomConfig",
            vocab_size=VOCABULARY,
            hidden_size=64,
            n_layer=2,
            n_head=4,
            bos_token_id=None,
            eos_token_id=None,
        ),
        change=_unfused,
    ),
    "cohere2": Small("cohere2", _of("Cohere2Config", **_GROUPED, head_dim=16, sliding_window=16), _cohere),
    "command-r": Small("command-r", _of("CohereConfig", **_GROUPED), _cohere),
    "exaone4": Small(
        "exaone4",
        _of(
            "Exaone4Config",
            **_UNTIED,
            layer_types=["full_attention"] * 4,
            sliding_window=None,
            sliding_window_pattern=None,
            rope_parameters=_ROPE,
        ),
    ),
    "ernie4_5": Small("ernie4_5", _of("Ernie4_5Config", **_GROUPED, head_dim=16, rope_parameters=_ROPE)),
    "falcon": Small("falcon", _of("FalconConfig", **_FALCON), change=_by_kind),
    "falcon_groups": Small(
        "falcon",
        _of("FalconConfig", **_FALCON, num_kv_heads=2, new_decoder_architecture=True, rope_parameters=_ROPE),
        change=_by_kind,
    ),
    "gemma3": Small(
        "gemma3",
        _of(
            "Gemma3TextConfig",
            **_GROUPED,
            head_dim=32,
            query_pre_attn_scalar=32,
            sliding_window=16,
            layer_types=["sliding_attention"] * 3 + ["sliding_attention"],
        ),
        _gemma3,
        _plus_one,
    ),
    "gemma3_deep": Small(
        "gemma3",
        _of(
            "Gemma3TextConfig",
            **{**_GROUPED, "num_hidden_layers": 7},
            head_dim=32,
            query_pre_attn_scalar=32,
            sliding_window=16,
        ),
        _gemma3,
        _plus_one,
    ),
    "glm4": Small("glm4", _of("Glm4Config", **_UNTIED, head_dim=16, rope_parameters=_HALF), _partly_turned),
    "gpt-oss": Small(
        "gpt-oss",
        _of(
            "GptOssConfig",
            **_EXPERTS,
            head_dim=16,
            num_local_experts=4,
            sliding_window=16,
            rope_parameters=_YARN,
        ),
        _yarn,
        split=_gpt_oss_parts,
    ),
    "gptneox": Small(
        "gptneox", _of("GPTNeoXConfig", **_DENSE, rope_parameters=_HALF), _partly_turned, _unfused
    ),
    "granite": Small(
        "granite", _of("GraniteConfig", **_UNTIED, **_MULTIPLIERS, rope_parameters=_ROPE), _granite, _permuted
    ),
    "granitemoe": Small(
        "granitemoe",
        _of("GraniteMoeConfig", **_EXPERTS, **_MULTIPLIERS, num_local_experts=4),
        _granite,
        change=_permuted,
        split=_granite_parts,
    ),
    "lfm2": Small(
        "lfm2",
        _of(
            "Lfm2Config",
            **_GROUPED,
            block_auto_adjust_ff_dim=False,
            layer_types=["conv", "full_attention", "conv", "full_attention"],
            rope_parameters=_ROPE,
        ),
        _lfm2,
        _squeezed,
    ),
    "llama4": Small("llama4", _of("Llama4TextConfig", **_LLAMA4), _llama4, split=_llama4_parts),
    "mamba": Small(
        "mamba",
        _of(
            "MambaConfig",
            vocab_size=VOCABULARY,
            hidden_size=64,
            num_hidden_layers=2,
            time_step_rank=4,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        ),
        _state_space,
        _mamba,
    ),
    "minimax-m2": Small(
        "minimax-m2",
        _of("MiniMaxM2Config", **_EXPERTS, head_dim=16, num_local_experts=4, rope_parameters=_HALF),
        _minimax,
        split=_minimax_parts,
    ),
    "mixtral": Small(
        "llama",
        _of("MixtralConfig", **_EXPERTS, num_local_experts=4, sliding_window=None, rope_parameters=_ROPE),
        change=_permuted,
    ),
    "nemotron": Small(
        "nemotron", _of("NemotronConfig", **_UNTIED, rope_parameters=_HALF), _partly_turned, _nemotron
    ),
    "olmo": Small("olmo", _of("OlmoConfig", **_UNTIED, clip_qkv=1.5), _clamped, _permuted),
    "olmo2": Small("olmo2", _of("Olmo2Config", **_UNTIED, rope_parameters=_ROPE)),
    "olmoe": Small("olmoe", _of("OlmoeConfig", **_EXPERTS, num_experts=4)),
    "phi2": Small("phi2", _of("PhiConfig", **_UNTIED, rope_parameters=_HALF), _partly_turned),
    "phi3": Small("phi3", _of("Phi3Config", **_UNTIED, original_max_position_embeddings=_CONTEXT), _phi3),
    "phi3_long": Small(
        "phi3",
        _of(
            "Phi3Config",
            **_UNTIED,
            sliding_window=20,
            original_max_position_embeddings=24,
            rope_parameters=_LONG,
        ),
        _phi3,
    ),
    "qwen2moe": Small(
        "qwen2moe",
        _of(
            "Qwen2MoeConfig",
            **_EXPERTS,
            num_experts=4,
            moe_intermediate_size=32,
            shared_expert_intermediate_size=64,
        ),
        _shared,
    ),
    "qwen3moe": Small(
        "qwen3moe",
        _of(
            "Qwen3MoeConfig",
            **_EXPERTS,
            head_dim=32,
            num_experts=4,
            moe_intermediate_size=32,
            norm_topk_prob=True,
            rope_parameters=_ROPE,
        ),
        _experts,
    ),
    "seed_oss": Small("seed_oss", _of("SeedOssConfig", **_UNTIED, head_dim=32, rope_parameters=_ROPE)),
    "smollm3": Small("smollm3", _of("SmolLM3Config", **_GROUPED, rope_parameters=_ROPE), change=_permuted),
    "stablelm": Small(
        "stablelm", _of("StableLmConfig", **_UNTIED, use_qkv_bias=True, rope_parameters=_HALF), _partly_turned
    ),
    "starcoder2": Small("starcoder2", _of("Starcoder2Config", **_GROUPED, rope_parameters=_ROPE)),
}


def build(name: str) -> Any:
    """The model in float32: norms are no ones, biases no zeros, so that each shows in the logits."""
    torch.manual_seed(_SEED)
    model = transformers.AutoModelForCausalLM.from_config(
        MODELS[name].config(), attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            if key.endswith(("A_log", ".D", "dt_proj.bias")):
                continue
            noise = torch.randn_like(value)
            if value.dim() > 1:
                value.copy_(noise * (1.5 / value.shape[-1] ** 0.5))
            elif "norm" in key or re.search(r"\.ln_|layer_?norm", key):
                value.copy_((0 if key.endswith("bias") else 1) + noise * 0.2)
            else:
                value.copy_(noise * 0.3)
    return model


def checkpoint(model: Any) -> dict[str, Any]:
    """What a checkpoint of the model holds, in float32; of tied tensors one."""
    state = revert_weight_conversion(model, dict(model.state_dict()))
    if model.config.tie_word_embeddings:
        state = {key: value for key, value in state.items() if not re.search(r"^(lm_head|embed_out)\.", key)}
    return {key: value.detach().float().numpy().copy() for key, value in state.items()}


def ggml_tensors(name: str, model: Any, state: Arrays) -> dict[str, Any]:
    """The tensors of the GGUF file that a checkpoint becomes."""
    small, config = MODELS[name], model.config
    number = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == small.architecture)
    table = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    stacked: dict[str, Any] = {}
    for key, value in state.items():
        expert = re.fullmatch(r"(.*experts)\.(\d+)\.(.*)", key)
        if expert is None:
            stacked[key] = value
        else:
            stacked.setdefault(f"{expert[1]}.{expert[3]}", []).append(value)
    made: dict[str, Any] = {}
    for key, value in stacked.items():
        whole = np.stack(value) if isinstance(value, list) else value
        for part, values in small.split(key, small.change(key, whole, config)):
            made[part if part.startswith("blk.") else _ggml_name(table, part)] = values
    return made


def _ggml_name(table: Any, name: str) -> str:
    stem, _, last = name.rpartition(".")
    stem, suffix = (stem, f".{last}") if last in {"weight", "bias"} else (name, "")
    found = table.get_name(stem) or table.get_name(stem.partition(".")[2])
    if found is None:
        raise ValueError(f"gguf has no name for {name}")
    return f"{found}{suffix}"


def _key_heads(config: Any) -> int | None:
    if config.model_type == "falcon":
        return config.num_kv_heads if config.new_decoder_architecture else 1
    found: int | None = getattr(config, "num_key_value_heads", None)
    return found


def _usual(writer: gguf.GGUFWriter, config: Any, architecture: str) -> None:
    """Write the metadata that most have."""

    def first(*names: str) -> Any:
        return next((value for n in names if (value := getattr(config, n, None)) is not None), None)

    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(first("max_position_embeddings") or _CONTEXT)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    if heads := first("num_attention_heads"):
        writer.add_head_count(heads)
        if architecture != "lfm2":
            writer.add_head_count_kv(_key_heads(config) or heads)
    writer.add_feed_forward_length(
        first("intermediate_size_mlp", "intermediate_size") or 4 * config.hidden_size
    )
    if size := first("head_dim"):
        writer.add_key_length(size)
        writer.add_value_length(size)
    if eps := first("rms_norm_eps"):
        writer.add_layer_norm_rms_eps(eps)
    if eps := first("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"):
        is_rms = architecture in {"mamba", "lfm2"}
        (writer.add_layer_norm_rms_eps if is_rms else writer.add_layer_norm_eps)(eps)
    if (turned := first("rope_parameters")) and "rope_theta" in turned:
        writer.add_rope_freq_base(turned["rope_theta"])
    if experts := first("num_local_experts", "num_experts"):
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config.num_experts_per_tok)


def write(
    name: str,
    file: Path,
    *,
    quantize: str = "",
    finer: str = "-",
    edit: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
) -> Any:
    """Write the model `name` of MODELS to a file, matrices in blocks of the type `quantize`; the model it is then.

    The model returned has the values that these blocks stand for. Tensors with `finer` in their names are Q8_0.
    """
    model = build(name)
    small, state = MODELS[name], checkpoint(model)
    writer = gguf.GGUFWriter(file, small.architecture)
    writer.add_tokenizer_model("none")
    _usual(writer, model.config, small.architecture)
    small.metadata(writer, model.config)
    edit(writer)
    values = ggml_tensors(name, model, state)
    for key, value in values.items():
        whole = np.ascontiguousarray(value, np.float32)
        if not quantize or whole.ndim < 2 or whole.shape[-1] % 32 or _AS_FLOATS.search(key):
            writer.add_tensor(key, whole)
            continue
        kind = gguf.GGMLQuantizationType["Q8_0" if finer in key else quantize]
        blocks = gguf.quants.quantize(whole, kind)
        writer.add_tensor(key, blocks, raw_dtype=kind)
        values[key] = gguf.quants.dequantize(blocks, kind).reshape(whole.shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if quantize:
        _take_over(name, model, state, values)
    return model


def _take_over(name: str, model: Any, state: dict[str, Any], values: Arrays) -> None:
    """Give a model the values of the file's matrices, by where each of its numbers went."""
    numbers, at = {}, 0
    for key, value in state.items():
        numbers[key] = np.arange(at, at + value.size, dtype=np.float64).reshape(value.shape)
        at += value.size
    flat = np.concatenate([value.reshape(-1) for value in state.values()])
    for key, went in ggml_tensors(name, model, numbers).items():
        if values[key].ndim > 1 and not _AS_FLOATS.search(key):
            flat[went.astype(np.int64).reshape(-1)] = values[key].reshape(-1)
    renewed = {key: flat[numbers[key].astype(np.int64)] for key in state}
    _load(model, {key: torch.from_numpy(value) for key, value in renewed.items()})


def _load(model: Any, state: dict[str, torch.Tensor]) -> None:
    """Give a model the tensors of a checkpoint, as transformers loads it."""
    with tempfile.TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        save_file(state, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        again = type(model).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model.load_state_dict(again.state_dict())


def main() -> None:
    """Run the tool, whose help is the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=MODELS)
    parser.add_argument("file", type=Path)
    parser.add_argument("--quantize", default="")
    options = parser.parse_args()
    write(options.name, options.file, quantize=options.quantize)
    print(options.file)


if __name__ == "__main__":
    main()
