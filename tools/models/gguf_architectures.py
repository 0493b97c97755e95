"""Small models of transformers as GGUF files, written as llama.cpp's converter writes them, for the importer's tests.

    python tools/models/gguf_architectures.py NAME FILE.gguf [--quantize Q8_0]

Names of tensors are those that the package gguf gives; what the converter does to a tensor beyond that is written here,
forwards, and shares nothing with what the importer takes back.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from gguf_conversions import Arrays
from gguf_small_models import CONTEXT, MODELS
from safetensors.torch import save_file
from transformers.core_model_loading import revert_weight_conversion

_SEED = 5
_AS_FLOATS = re.compile(r"norm|bias|_inp|ssm_a|conv1d")
"""Tensors that llama.cpp never has in blocks."""


def build(name: str) -> Any:
    """The model in float32: norms are no ones, biases no zeros, so that each shows in the logits."""
    torch.manual_seed(_SEED)
    config = MODELS[name].config()
    kind = (
        transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    )
    model = kind.from_config(config, attn_implementation="eager").eval()
    if config.is_encoder_decoder and not is_tied(config):
        # The class ties them, and leaves them apart where a checkpoint has both.
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
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
        for key, value in model.named_buffers():
            if key.endswith(("correction_bias", "expert_bias", "layer_scalar")):
                value.copy_(key.endswith("layer_scalar") + torch.randn_like(value) * 0.2)
    return model


def checkpoint(model: Any) -> dict[str, Any]:
    """What a checkpoint of the model holds, in float32; of tied tensors one."""
    state = revert_weight_conversion(model, dict(model.state_dict()))
    if model.config.is_encoder_decoder:
        state = {key: value for key, value in state.items() if not key.endswith("coder.embed_tokens.weight")}
    if is_tied(model.config):
        state = {key: value for key, value in state.items() if not re.search(r"^(lm_head|embed_out)\.", key)}
    return {key: value.detach().float().numpy().copy() for key, value in state.items()}


def is_tied(config: Any) -> bool:
    """Whether the head is the embedding: of T5 the config says it by whether outputs are scaled."""
    return bool(getattr(config, "scale_decoder_outputs", config.tie_word_embeddings))


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
    writer.add_context_length(first("max_position_embeddings") or CONTEXT)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    if heads := first("num_attention_heads"):
        writer.add_head_count(heads)
        if architecture not in {"lfm2", "lfm2moe"}:
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
        is_rms = architecture in {"mamba", "lfm2", "lfm2moe"}
        (writer.add_layer_norm_rms_eps if is_rms else writer.add_layer_norm_eps)(eps)
    if (turned := first("rope_parameters")) and "rope_theta" in turned:
        writer.add_rope_freq_base(turned["rope_theta"])
    if experts := first("num_local_experts", "num_experts"):
        writer.add_expert_count(experts)
        if hasattr(config, "num_experts_per_tok"):
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
    small, state, config = MODELS[name], checkpoint(model), deepcopy(model.config)
    config.allow_global_per_layer_attribute_access = True  # of layers of several kinds
    writer = gguf.GGUFWriter(file, small.architecture)
    writer.add_tokenizer_model("none")
    _usual(writer, config, small.architecture)
    small.metadata(writer, config)
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
