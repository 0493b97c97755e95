"""The plan of a decoder so plain that its class need not be asked: no torch is imported, which takes seconds.

Plain is a model of few classes that are known by name, whose config says all that its shapes follow from, and whose
file has the tensors of these names and shapes, all of them and no others. For each of the classes a test compares the
plan with the one that the class gives (tests/packed/test_plain.py). Anything else is none of ours.
"""

import json
from collections.abc import Mapping
from itertools import chain
from pathlib import Path

from spqfmt.container.model import OpenModel, is_packed, open_model
from spqfmt.errors import OptionError
from spqfmt.records import main_dtype
from spqfmt.residency.cpu import plan_residency
from spqfmt.residency.from_index import inventory_from_index
from spqfmt.residency.model_plan import ModelPlan, activations
from spqfmt.residency.rates import Rates, measure_rates
from spqfmt.schemes.registry import whole_because
from spqfmt.sizes import parse_size

_CONFIG = "config.json"
_CONFIG_BYTES = 1 << 16
_ITEM_BYTES = {"f32": 4, "f16": 2, "bf16": 2, "float32": 4, "float16": 2, "bfloat16": 2}

# Tensors of a layer and their shapes: H of the hidden size, Q, K and D of the heads' sizes, I of the intermediate one.
_LLAMA = {
    "self_attn.q_proj.weight": "QH",
    "self_attn.k_proj.weight": "KH",
    "self_attn.v_proj.weight": "KH",
    "self_attn.o_proj.weight": "HQ",
    "mlp.gate_proj.weight": "IH",
    "mlp.up_proj.weight": "IH",
    "mlp.down_proj.weight": "HI",
    "input_layernorm.weight": "H",
    "post_attention_layernorm.weight": "H",
}
_QWEN2 = {"self_attn.q_proj.bias": "Q", "self_attn.k_proj.bias": "K", "self_attn.v_proj.bias": "K"}
_QWEN3 = {"self_attn.q_norm.weight": "D", "self_attn.k_norm.weight": "D"}
CLASSES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "LlamaForCausalLM": ("llama", _LLAMA),
    "MistralForCausalLM": ("mistral", _LLAMA),
    "Qwen2ForCausalLM": ("qwen2", _LLAMA | _QWEN2),
    "Qwen3ForCausalLM": ("qwen3", _LLAMA | _QWEN3),
    "GraniteForCausalLM": ("granite", _LLAMA),
    "SmolLM3ForCausalLM": ("smollm3", _LLAMA),
}
"""Model types and what a layer has, by the class that a config names."""
# What adds tensors, or changes what they are.
_ODD = ("attention_bias", "mlp_bias", "quantization_config", "pruned_heads", "backbone", "checkpoint_path")

_TABLES = ("rope_scaling", "rope_parameters", "id2label", "label2id", "auto_map")
"""Where no config of a part stands."""


def plan_plain(
    path: Path,
    *,
    memory: str | None,
    dtype: str | None,
    n_tokens: int,
    batch: int,
    rates: Rates | None = None,
) -> ModelPlan | None:
    """Plan `path` for the CPU, as `plan_model` does; None where it is no file of a plain decoder.

    Raises FormatError and OSError for the file, OptionError, MemoryBudgetError.
    """
    memory_bytes = None if memory is None else parse_size(memory)
    if memory_bytes == 0:
        raise OptionError("a ceiling is at least 1 byte")
    if not is_packed(path):
        return None
    with open_model(path) as model:
        model.refuse_lone_shard()
        config = _plain_config(model)
        if config is None:
            return None
        item_bytes = _ITEM_BYTES.get(dtype or main_dtype(model.tensors.values()))
        if item_bytes is None:
            return None
        inventory = inventory_from_index(model.readers, item_bytes)
        found = rates or measure_rates(model.readers[0])
        return ModelPlan(
            plan=plan_residency(inventory, found, memory_bytes),
            inventory=inventory,
            rates=found,
            on_top=activations(config.get, item_bytes, n_tokens=n_tokens, batch=batch),
            changed=(),
            whole={},
        )


def _plain_config(model: OpenModel) -> Mapping[str, object] | None:
    """The config of a plain decoder."""
    sizes = {asset.name: asset.stream.n for reader in model.readers for asset in reader.index.assets}
    if sizes.get(_CONFIG, _CONFIG_BYTES + 1) > _CONFIG_BYTES:
        return None
    try:
        config = json.loads(model.read_asset(_CONFIG))
    except (ValueError, RecursionError):
        return None
    if not isinstance(config, dict) or any(config.get(key) for key in _ODD):
        return None
    records = model.tensors
    if any(map(whole_because, records.values())) or any(
        isinstance(value, dict) and key not in _TABLES for key, value in config.items()
    ):
        return None
    shapes = _shapes(config, len(records))
    if shapes is None or records.keys() != shapes.keys():
        return None
    same = all(record.shape == shapes[name] and not record.transposed for name, record in records.items())
    head, embedding = records["lm_head.weight"].tied_to, "model.embed_tokens.weight"
    is_tied = config.get("tie_word_embeddings")
    others = (record.tied_to for name, record in records.items() if name != "lm_head.weight")
    tied = isinstance(is_tied, bool) and head == (embedding if is_tied else None) and not any(others)
    return config if same and tied else None


def _shapes(config: Mapping[str, object], n_tensors: int) -> dict[str, tuple[int, ...]] | None:
    """All tensors of the model that a config of one of the classes says; None for another config."""
    named = config.get("architectures")
    model_type, layer = (
        CLASSES.get(str(named[0]), ("", {})) if isinstance(named, list) and named else ("", {})
    )
    keys = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "vocab_size")
    numbers = [config.get(key) for key in keys]
    if config.get("model_type") != model_type or not all(type(n) is int and n > 0 for n in numbers):
        return None
    hidden, inner, heads, n_layers, n_rows = (n for n in numbers if isinstance(n, int))
    key_heads = config.get("num_key_value_heads") or heads
    head = config.get("head_dim") or hidden // heads
    if not isinstance(key_heads, int) or not isinstance(head, int):
        return None
    if n_layers > n_tensors:
        return None
    size = {"H": hidden, "I": inner, "Q": heads * head, "K": key_heads * head, "D": head}
    layers = (
        (f"model.layers.{k}.{name}", tuple(size[letter] for letter in letters))
        for k in range(n_layers)
        for name, letters in layer.items()
    )
    ends = {
        "model.embed_tokens.weight": (n_rows, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (n_rows, hidden),
    }
    return dict(chain(ends.items(), layers))
