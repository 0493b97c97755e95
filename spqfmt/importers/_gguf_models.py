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
from typing import Any

from spqfmt.importers._gguf_changes import AS_STORED, Change, interleaved, minus_one

Config = dict[str, Any]
ChangeOf = Callable[[str, tuple[int, ...], Config], Change]
"""(Hugging Face name, shape in the model, config) -> how GGUF's tensor differs."""
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

    def positive(self, key: str, default: float | None = None) -> float:
        """The architecture's number `key`, which is more than zero. ValueError without one."""
        value = self.number(key, default)
        if value <= 0:
            raise ValueError(f"{self.architecture}.{key} is {value!r}, not a number above 0")
        return value

    def flag(self, key: str, *, default: bool) -> bool:
        """Whether the architecture's `key` is true, such as "expert_weights_norm". ValueError for what is no flag."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise ValueError(f"{self.architecture}.{key} is {str(value)[:80]}, neither true nor false")
        return value

    def rows(self, name: str) -> int:
        """Rows of the matrix `name`, or of each of several. ValueError without one."""
        shape = self.shapes.get(name, ())
        if len(shape) < 2:
            raise ValueError(f"{self.architecture}: it has no matrix {name}")
        return shape[-2]

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
    change: ChangeOf
    is_without_biases: bool = False
    """Whether its class has none unless the file does."""


def rope(facts: Facts) -> Config:
    """The rotary embedding's parameters. Raises ValueError for a scaling that is not known."""
    parameters: Config = {"rope_type": "default", "rope_theta": facts.positive("rope.freq_base", 10000.0)}
    kind = facts.metadata.get(f"{facts.architecture}.rope.scaling.type", "none")
    if kind == "none":
        return parameters
    if kind not in ("linear", "yarn"):
        raise ValueError(f"rotary scaling {str(kind)[:80]!r} is not known")
    parameters |= {"rope_type": kind, "factor": facts.positive("rope.scaling.factor")}
    if kind == "yarn":
        parameters["original_max_position_embeddings"] = facts.count("rope.scaling.original_context_length")
        parameters |= {
            name: facts.number(f"rope.scaling.yarn_{name}")
            for name in ("beta_fast", "beta_slow")
            if f"{facts.architecture}.rope.scaling.yarn_{name}" in facts.metadata
        }
    return parameters


def next_layers(facts: Facts) -> int:
    """Layers after the model's own that guess tokens ahead. Raises ValueError for a number that is none."""
    found = facts.metadata.get(f"{facts.architecture}.nextn_predict_layers", 0)
    if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found < facts.count("block_count"):
        raise ValueError(f"{facts.architecture}.nextn_predict_layers is {found!r}, not a count of layers")
    return found


def head_size(facts: Facts) -> int:
    """Columns of a head."""
    return facts.count(
        "attention.key_length", max(1, facts.count("embedding_length") // facts.count("attention.head_count"))
    )


def partial_rope(facts: Facts) -> Config:
    """The rotary embedding, of a part of each head where the file says so."""
    parameters, size = rope(facts), head_size(facts)
    n_turned = facts.count("rope.dimension_count", size)
    if n_turned > size:
        raise ValueError(
            f"{facts.architecture}.rope.dimension_count is {n_turned}, a head has {size} columns"
        )
    if n_turned < size:
        parameters["partial_rotary_factor"] = n_turned / size
    return parameters


def whole_rope(facts: Facts) -> Config:
    """The rotary embedding of all columns of a head. Raises ValueError where the file says a part."""
    n_turned, size = facts.count("rope.dimension_count", head_size(facts)), head_size(facts)
    if n_turned != size:
        raise ValueError(
            f"{facts.architecture}.rope.dimension_count is {n_turned}, but a head has {size} columns"
        )
    return rope(facts)


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
        "rope_parameters": rope(facts),
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


def table_shape(name: str, config: Config) -> tuple[int, ...]:
    """The shape that a tensor of one of MODELS has in the file, by ggml's name and the config of the metadata."""
    hidden, heads, inner = (
        config[usual if usual in config else gpt2]
        for usual, gpt2 in (
            ("hidden_size", "n_embd"),
            ("num_attention_heads", "n_head"),
            ("intermediate_size", "n_inner"),
        )
    )
    size = config.get("head_dim", hidden // heads)
    queries, keys = heads * size, config.get("num_key_value_heads", heads) * size
    shapes = {
        "token_embd": (config["vocab_size"], hidden),
        "output": (config["vocab_size"], hidden),
        "position_embd": (config.get("n_positions"), hidden),
        "attn_q": (queries, hidden),
        "attn_k": (keys, hidden),
        "attn_v": (keys, hidden),
        "attn_qkv": (3 * queries, hidden),
        "attn_output": (hidden, queries),
        "attn_q_norm": (size,),
        "attn_k_norm": (size,),
        "ffn_gate": (inner, hidden),
        "ffn_up": (inner, hidden),
        "ffn_down": (hidden, inner),
    }
    stem, _, kind = name.rpartition(".")
    # All others are norms of a layer's channels.
    shape = shapes.get(stem.rpartition(".")[2], (hidden,))
    return shape[:1] if kind == "bias" else shape


def as_stored(name: str, shape: tuple[int, ...], config: Config) -> Change:
    """Say that nothing differs."""
    return AS_STORED


def rotary(name: str, shape: tuple[int, ...], config: Config) -> Change:
    """Queries and keys as llama.cpp's Llama has them."""
    heads = {".q_proj.": "num_attention_heads", ".k_proj.": "num_key_value_heads"}
    key = next((heads[part] for part in heads if part in name), None)
    return AS_STORED if key is None else interleaved(shape[0], config[key])


def norm_plus_one(name: str, shape: tuple[int, ...], config: Config) -> Change:
    """Norms as Gemma has them."""
    return Change(values=minus_one) if name.endswith("norm.weight") else AS_STORED


def _conv1d(name: str, shape: tuple[int, ...], config: Config) -> Change:
    return Change(transposed=True) if ".h." in name and len(shape) == 2 else AS_STORED


_MODELS: Mapping[str, GgufModel] = {
    "llama": GgufModel(
        class_name="LlamaForCausalLM",
        names=_LLAMA_NAMES,
        config=_llama,
        change=rotary,
        is_without_biases=True,
    ),
    "qwen2": GgufModel("Qwen2ForCausalLM", _LLAMA_NAMES, _qwen2, as_stored),
    "qwen3": GgufModel(
        "Qwen3ForCausalLM", _LLAMA_NAMES | _QK_NORMS, _qwen3, as_stored, is_without_biases=True
    ),
    "gemma": GgufModel(
        class_name="GemmaForCausalLM",
        names=_LLAMA_NAMES,
        config=_gemma,
        change=norm_plus_one,
        is_without_biases=True,
    ),
    "gemma2": GgufModel(
        class_name="Gemma2ForCausalLM",
        names=_LLAMA_NAMES | _GEMMA2_NORMS,
        config=_gemma2,
        change=norm_plus_one,
        is_without_biases=True,
    ),
    "gpt2": GgufModel(
        class_name="GPT2LMHeadModel",
        names=_GPT2_NAMES,
        config=_gpt2,
        change=_conv1d,
    ),
}
# Beside a text, whose tokens have one place each, models that see are what they are made of.
MODELS = {**_MODELS, "qwen2vl": _MODELS["qwen2"], "qwen3vl": _MODELS["qwen3"]}
