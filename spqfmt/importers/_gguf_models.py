"""The architectures that GGUF files are imported of: metadata -> config.json, tensor names -> Hugging Face names.

A tensor that llama.cpp stores differently from transformers is put back:
- llama: rows of q and k are interleaved for llama.cpp's rotary order; transformers keeps the halves apart.
- gemma: norm weights are stored plus one.
- gpt2: projections are stored [out, in]; transformers' Conv1D is [in, out].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Config = dict[str, Any]
Turned = tuple[tuple[int, ...], tuple[int, ...]]
_LLAMA_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk.{}.attn_norm": "model.layers.{}.input_layernorm",
    "blk.{}.attn_q": "model.layers.{}.self_attn.q_proj",
    "blk.{}.attn_k": "model.layers.{}.self_attn.k_proj",
    "blk.{}.attn_v": "model.layers.{}.self_attn.v_proj",
    "blk.{}.attn_output": "model.layers.{}.self_attn.o_proj",
    "blk.{}.ffn_norm": "model.layers.{}.post_attention_layernorm",
    "blk.{}.ffn_gate": "model.layers.{}.mlp.gate_proj",
    "blk.{}.ffn_up": "model.layers.{}.mlp.up_proj",
    "blk.{}.ffn_down": "model.layers.{}.mlp.down_proj",
}
_QK_NORMS = {
    "blk.{}.attn_q_norm": "model.layers.{}.self_attn.q_norm",
    "blk.{}.attn_k_norm": "model.layers.{}.self_attn.k_norm",
}
_GEMMA2_NORMS = {
    "blk.{}.post_attention_norm": "model.layers.{}.post_attention_layernorm",
    "blk.{}.ffn_norm": "model.layers.{}.pre_feedforward_layernorm",
    "blk.{}.post_ffw_norm": "model.layers.{}.post_feedforward_layernorm",
}
_GPT2_NAMES = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    "blk.{}.attn_norm": "transformer.h.{}.ln_1",
    "blk.{}.attn_qkv": "transformer.h.{}.attn.c_attn",
    "blk.{}.attn_output": "transformer.h.{}.attn.c_proj",
    "blk.{}.ffn_norm": "transformer.h.{}.ln_2",
    "blk.{}.ffn_up": "transformer.h.{}.mlp.c_fc",
    "blk.{}.ffn_down": "transformer.h.{}.mlp.c_proj",
}


@dataclass(frozen=True)
class Facts:
    """What a config is made from: the file's metadata and the shapes of its tensors."""

    architecture: str
    metadata: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]

    def count(self, key: str, default: int | None = None) -> int:
        """The architecture's positive integer `key`, such as "block_count". ValueError without one."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{self.architecture}.{key} is {value!r}, not a count")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """The architecture's number `key`, such as "rope.freq_base". ValueError without one."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{self.architecture}.{key} is {value!r}, not a number")
        return value

    def _value(self, key: str, default: float | None) -> Any:
        value = self.metadata.get(f"{self.architecture}.{key}", default)
        if value is None:
            raise ValueError(f"the metadata lacks {self.architecture}.{key}")
        return value

    @property
    def vocabulary(self) -> int:
        """Rows of the token embedding: the tokenizer's list may be shorter or longer."""
        return self.shapes["token_embd.weight"][0]


@dataclass(frozen=True)
class GgufModel:
    """How GGUF writes one architecture, and what transformers calls it.

    `names` maps stems; the suffix .weight or .bias stays as it is.
    """

    class_name: str
    names: Mapping[str, str]
    config: Callable[[Facts], Config]
    restore: Callable[[str, torch.Tensor, Config], torch.Tensor]
    """(Hugging Face name, tensor as stored, config) -> tensor as transformers wants it, same dtype."""
    changed: str = r"$^"
    """Pattern of the Hugging Face names of tensors that it changes."""
    turned: Callable[[tuple[int, ...], str, Config], Turned] | None = None
    """(shape, Hugging Face name, config) -> how one of these becomes what is stored: see `SourceTensor.turned`."""
    transposes: bool = False
    """2-D weights inside the layers are stored transposed against transformers."""


def _rope(facts: Facts) -> Config:
    rope: Config = {"rope_type": "default", "rope_theta": facts.number("rope.freq_base", 10000.0)}
    kind = facts.metadata.get(f"{facts.architecture}.rope.scaling.type", "none")
    if kind == "none":
        return rope
    if kind not in {"linear", "yarn"}:
        raise ValueError(f"rotary scaling {kind!r} is not known")
    rope |= {"rope_type": kind, "factor": facts.number("rope.scaling.factor")}
    if kind == "yarn":
        rope["original_max_position_embeddings"] = facts.count("rope.scaling.original_context_length")
    return rope


def _decoder(facts: Facts) -> Config:
    """The keys that all Llama-like decoders share."""
    hidden, heads = facts.count("embedding_length"), facts.count("attention.head_count")
    return {
        "hidden_size": hidden,
        "intermediate_size": facts.count("feed_forward_length"),
        "num_hidden_layers": facts.count("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": facts.count("attention.head_count_kv", heads),
        "head_dim": facts.count(
            "attention.key_length", facts.count("rope.dimension_count", max(1, hidden // heads))
        ),
        "max_position_embeddings": facts.count("context_length"),
        "rms_norm_eps": facts.number("attention.layer_norm_rms_epsilon"),
        "rope_parameters": _rope(facts),
        "vocab_size": facts.vocabulary,
    }


def _llama(facts: Facts) -> Config:
    return {
        "model_type": "llama",
        "attention_bias": "blk.0.attn_q.bias" in facts.shapes,
        "mlp_bias": "blk.0.ffn_up.bias" in facts.shapes,
        **_decoder(facts),
    }


def _qwen2(facts: Facts) -> Config:
    config = {"model_type": "qwen2", **_decoder(facts)}
    del config["head_dim"]  # Qwen2 has no such key: it is always hidden_size / heads
    return config


def _qwen3(facts: Facts) -> Config:
    return {"model_type": "qwen3", "attention_bias": False, **_decoder(facts)}


def _gemma(facts: Facts) -> Config:
    return {"model_type": "gemma", "hidden_activation": "gelu_pytorch_tanh", **_decoder(facts)}


def _gemma2(facts: Facts) -> Config:
    config = _decoder(facts)
    # The 27B model scales queries by hidden / heads. The file does not say so; llama.cpp too goes by its 46 layers.
    n_layers, hidden, heads = (
        config["num_hidden_layers"],
        config["hidden_size"],
        config["num_attention_heads"],
    )
    return {
        "model_type": "gemma2",
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": facts.count("attention.sliding_window", 4096),
        "attn_logit_softcapping": facts.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": facts.number("final_logit_softcapping", 30.0),
        "query_pre_attn_scalar": hidden // heads if n_layers == 46 else config["head_dim"],
        **config,
    }


def _gpt2(facts: Facts) -> Config:
    hidden = facts.count("embedding_length")
    return {
        "model_type": "gpt2",
        "n_embd": hidden,
        "n_layer": facts.count("block_count"),
        "n_head": facts.count("attention.head_count"),
        "n_inner": facts.count("feed_forward_length", 4 * hidden),
        "n_positions": facts.count("context_length"),
        "layer_norm_epsilon": facts.number("attention.layer_norm_epsilon"),
        "vocab_size": facts.vocabulary,
    }


def _as_stored(name: str, tensor: torch.Tensor, config: Config) -> torch.Tensor:
    return tensor


def _interleaved_rotary(name: str, tensor: torch.Tensor, config: Config) -> torch.Tensor:
    if ".q_proj." in name:
        heads = config["num_attention_heads"]
    elif ".k_proj." in name:
        heads = config["num_key_value_heads"]
    else:
        return tensor
    half = tensor.shape[0] // heads // 2
    return tensor.reshape(heads, half, 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def _interleaved(shape: tuple[int, ...], name: str, config: Config) -> Turned:
    heads = config["num_attention_heads" if ".q_proj." in name else "num_key_value_heads"]
    return (heads, 2, shape[0] // heads // 2, *shape[1:]), (0, 2, 1, *range(3, 2 + len(shape)))


def _swapped(shape: tuple[int, ...], name: str, config: Config) -> Turned:
    return shape, tuple(range(len(shape)))[::-1]


def _norm_plus_one(name: str, tensor: torch.Tensor, config: Config) -> torch.Tensor:
    return tensor - 1 if name.endswith("norm.weight") else tensor


def _conv1d(name: str, tensor: torch.Tensor, config: Config) -> torch.Tensor:
    return tensor.t().contiguous() if ".h." in name and tensor.dim() == 2 else tensor


MODELS: Mapping[str, GgufModel] = {
    "llama": GgufModel(
        class_name="LlamaForCausalLM",
        names=_LLAMA_NAMES,
        config=_llama,
        restore=_interleaved_rotary,
        changed=r"\.[qk]_proj\.",
        turned=_interleaved,
    ),
    "qwen2": GgufModel("Qwen2ForCausalLM", _LLAMA_NAMES, _qwen2, _as_stored),
    "qwen3": GgufModel("Qwen3ForCausalLM", _LLAMA_NAMES | _QK_NORMS, _qwen3, _as_stored),
    "gemma": GgufModel(
        class_name="GemmaForCausalLM",
        names=_LLAMA_NAMES,
        config=_gemma,
        restore=_norm_plus_one,
        changed=r"norm\.weight$",
    ),
    "gemma2": GgufModel(
        class_name="Gemma2ForCausalLM",
        names=_LLAMA_NAMES | _GEMMA2_NORMS,
        config=_gemma2,
        restore=_norm_plus_one,
        changed=r"norm\.weight$",
    ),
    "gpt2": GgufModel(
        class_name="GPT2LMHeadModel",
        names=_GPT2_NAMES,
        config=_gpt2,
        restore=_conv1d,
        changed=r"\.h\..*(attn|mlp).*\.weight$",
        turned=_swapped,
        transposes=True,
    ),
}
