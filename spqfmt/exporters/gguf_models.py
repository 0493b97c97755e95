"""What GGUF says of a model: the keys of its architecture from config.json, and where llama.cpp's tensors differ.

Names of tensors come from the package gguf. A config that llama.cpp would compute otherwise is refused. What differs:
- llama: rows of queries and keys are interleaved, as its rotary embedding takes them.
- gemma: norms are stored plus one, rounded to F32.
- gpt2: projections lie [out, in].
Experts of a layer are one tensor each of gates, ups and downs (gguf_tensors.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spqfmt.errors import EncodeError

Config = Mapping[str, Any]
Keys = dict[str, Any]
_TANH = "gelu_pytorch_tanh"


class _Said(dict[str, Any]):
    """A config that names the key which it lacks."""

    def __missing__(self, key: str) -> Any:
        raise EncodeError(f"config.json lacks {key!r}, which GGUF needs")


@dataclass(frozen=True)
class GgufFamily:
    """How GGUF has the models of one model_type. `keys` have the architecture's name put before them."""

    architecture: str
    keys: Callable[[Config], Keys]
    activation: str
    interleaves: bool = False
    """Whether rows of queries and keys are."""
    adds_one: bool = False
    """Whether norms are stored plus one."""
    transposes: bool = False
    """Whether layers lie the other way."""


def family_of(config: Config) -> GgufFamily:
    """The family of a config. Raises EncodeError for one that is not known, naming it."""
    kind = config.get("model_type")
    family = FAMILIES.get(str(kind))
    if family is None:
        known = ", ".join(FAMILIES)
        raise EncodeError(f"models of the type {kind!r} are not written as GGUF, only {known}")
    found = next((config[key] for key in _ACTIVATIONS if config.get(key)), family.activation)
    if found != family.activation and not (family.adds_one and found == "gelu"):
        raise EncodeError(f"llama.cpp computes {kind} with {family.activation}, not with {found}")
    return family


def keys_of(family: GgufFamily, config: Config) -> Keys:
    """All keys of the architecture. Raises EncodeError for what llama.cpp would compute otherwise."""
    said = _Said(config)
    return {f"{family.architecture}.{key}": value for key, value in family.keys(said).items()}


def rope_divisors(config: Config) -> NDArray[np.float32] | None:
    """What Llama 3's rule divides each rotary frequency by, which GGUF has as a tensor; None for other rules."""
    rope = _Said(_rope_of(config))
    if _rope_type(rope) != "llama3":
        return None
    head = _head_size(_Said(config))
    per_wavelength = _theta(config, rope) ** (-np.arange(head // 2) * 2 / head) / (2 * np.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = (rope["original_max_position_embeddings"] * per_wavelength - low) / (high - low)
    smooth = np.clip(smooth, 0, 1)
    divisors: NDArray[np.float32] = (1 / ((1 - smooth) / rope["factor"] + smooth)).astype(np.float32)
    return divisors


def interleaved(name: str, n_rows: int, config: Config) -> NDArray[np.int64] | None:
    """Which row of queries or keys, weights or biases, is each row of GGUF's; None for other tensors."""
    if ".q_proj." in name:
        heads = config["num_attention_heads"]
    elif ".k_proj." in name:
        heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    else:
        return None
    return np.arange(n_rows).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)


_ACTIVATIONS = ("hidden_activation", "hidden_act", "activation_function")


def _decoder(config: Config) -> Keys:
    """The keys that all Llama-like decoders share."""
    heads, head = config["num_attention_heads"], _head_size(config)
    rope = _rope_of(config)
    if (config.get("partial_rotary_factor") or rope.get("partial_rotary_factor") or 1) != 1:
        raise EncodeError(
            "GGUF is written of models that turn all of a head's dimensions, config.json says a part"
        )
    return {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "block_count": config["num_hidden_layers"],
        "attention.head_count": heads,
        "attention.head_count_kv": config.get("num_key_value_heads") or heads,
        "attention.key_length": head,
        "attention.value_length": head,
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.dimension_count": head,
        **_rope(config),
    }


def _head_size(config: Config) -> int:
    size: int = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return size


def _rope_of(config: Config) -> Config:
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return found.get("full_attention", found) if isinstance(found, dict) else {}


def _rope_type(rope: Config) -> str:
    return str(rope.get("rope_type") or rope.get("type") or "default")


def _theta(config: Config, rope: Config) -> float:
    return float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)


def _rope(config: Config) -> Keys:
    rope = _Said(_rope_of(config))
    kind = _rope_type(rope)
    keys: Keys = {"rope.freq_base": _theta(config, rope)}
    if kind in {"linear", "yarn"}:
        keys |= {"rope.scaling.type": kind, "rope.scaling.factor": float(rope["factor"])}
    if kind == "yarn":
        keys["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
    usual = {"attention_factor": None, "beta_fast": 32, "beta_slow": 1, "mscale": None, "truncate": True}
    others = [key for key, value in usual.items() if rope.get(key, value) not in (value, None)]
    if kind not in {"default", "linear", "yarn", "llama3"} or (kind == "yarn" and others):
        raise EncodeError(f"GGUF does not hold a rotary scaling of {', '.join([repr(kind), *others])}")
    return keys


def _llama(config: Config) -> Keys:
    """Within a sliding window all attention is full, so that a context of its length is computed as it should be."""
    keys = _decoder(config)
    window = config.get("sliding_window")
    return keys | {"context_length": min(keys["context_length"], window)} if window else keys


def _qwen(config: Config) -> Keys:
    if config.get("use_sliding_window"):
        raise EncodeError("llama.cpp computes it without the sliding window that config.json asks for")
    return _decoder(config)


def _mixtral(config: Config) -> Keys:
    return _llama(config) | {
        "expert_count": config["num_local_experts"],
        "expert_used_count": config["num_experts_per_tok"],
    }


def _qwen3_moe(config: Config) -> Keys:
    """llama.cpp gives all layers experts, whose weights add up to one."""
    if (
        not config.get("norm_topk_prob")
        or config.get("mlp_only_layers")
        or config.get("decoder_sparse_step", 1) != 1
    ):
        raise EncodeError("llama.cpp computes qwen3_moe with experts in all layers and norm_topk_prob alone")
    return _qwen(config) | {
        "expert_count": config.get("num_experts") or config["num_local_experts"],
        "expert_used_count": config["num_experts_per_tok"],
        "expert_feed_forward_length": config["moe_intermediate_size"],
    }


def _smollm3(config: Config) -> Keys:
    """llama.cpp turns no position in every fourth layer."""
    n = config["num_hidden_layers"]
    due = [int((i + 1) % 4 != 0) for i in range(n)]
    if (config.get("no_rope_layers") or due) != due:
        raise EncodeError("its layers without rotary embedding are others than llama.cpp's")
    return _qwen(config)


def _granite(config: Config) -> Keys:
    return _decoder(config) | {
        "attention.scale": float(config["attention_multiplier"]),
        "embedding_scale": float(config["embedding_multiplier"]),
        "residual_scale": float(config["residual_multiplier"]),
        "logit_scale": float(config["logits_scaling"]),
    }


def _gemma2(config: Config) -> Keys:
    _check_windows(config, 2)
    _check_queries(config, large=46)
    return _decoder(config) | {
        "attention.sliding_window": config["sliding_window"],
        "attn_logit_softcapping": float(config["attn_logit_softcapping"] or 0),
        "final_logit_softcapping": float(config["final_logit_softcapping"] or 0),
    }


def _gemma3(config: Config) -> Keys:
    _check_windows(config, 6)
    _check_queries(config, large=62)
    rope = config.get("rope_parameters") or {}
    local = rope.get("sliding_attention", {}).get("rope_theta") or config.get("rope_local_base_freq", 10000.0)
    if float(local) != 10000.0:
        raise EncodeError(f"llama.cpp turns local attention with a base of 10000, not of {local}")
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if config.get(key):
            raise EncodeError(f"llama.cpp computes it without the {key} that config.json asks for")
    return _decoder(config) | {"attention.sliding_window": config["sliding_window"]}


def _check_windows(config: Config, period: int) -> None:
    """llama.cpp goes by the number of a layer: each `period`th has full attention."""
    n = config["num_hidden_layers"]
    due = ["full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(n)]
    if (config.get("layer_types") or due) != due or config.get("sliding_window_pattern", period) != period:
        raise EncodeError("its layers with a sliding window are others than llama.cpp's")


def _check_queries(config: Config, large: int) -> None:
    """llama.cpp goes by the number of layers: those of the largest model scale queries by hidden size / heads."""
    is_large = config["num_hidden_layers"] == large
    due = config["hidden_size"] / config["num_attention_heads"] if is_large else _head_size(config)
    if config.get("query_pre_attn_scalar", due) != due:
        raise EncodeError(f"llama.cpp scales its queries by {due}, not by query_pre_attn_scalar")


def _gpt2(config: Config) -> Keys:
    return {
        "context_length": config["n_positions"],
        "embedding_length": config["n_embd"],
        "feed_forward_length": config.get("n_inner") or 4 * config["n_embd"],
        "block_count": config["n_layer"],
        "attention.head_count": config["n_head"],
        "attention.layer_norm_epsilon": float(config["layer_norm_epsilon"]),
    }


FAMILIES: Mapping[str, GgufFamily] = {
    "llama": GgufFamily("llama", _llama, "silu", interleaves=True),
    "mistral": GgufFamily("llama", _llama, "silu", interleaves=True),
    "qwen2": GgufFamily("qwen2", _qwen, "silu"),
    "qwen3": GgufFamily("qwen3", _qwen, "silu"),
    "mixtral": GgufFamily("llama", _mixtral, "silu", interleaves=True),
    "qwen3_moe": GgufFamily("qwen3moe", _qwen3_moe, "silu"),
    "smollm3": GgufFamily("smollm3", _smollm3, "silu", interleaves=True),
    "granite": GgufFamily("granite", _granite, "silu", interleaves=True),
    "olmo2": GgufFamily("olmo2", _decoder, "silu"),
    "phi3": GgufFamily("phi3", _llama, "silu"),
    "gemma": GgufFamily("gemma", _decoder, _TANH, adds_one=True),
    "gemma2": GgufFamily("gemma2", _gemma2, _TANH, adds_one=True),
    "gemma3_text": GgufFamily("gemma3", _gemma3, _TANH, adds_one=True),
    "gpt2": GgufFamily("gpt2", _gpt2, "gelu_new", transposes=True),
}
"""The families by their model_type in config.json."""
