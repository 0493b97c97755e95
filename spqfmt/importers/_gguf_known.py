"""A GGUF file as transformers' model of its architecture: tensors by their names there, config.json, what is tied."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from spqfmt.errors import ImporterError
from spqfmt.importers._gguf_changes import AS_STORED
from spqfmt.importers._gguf_checks import EMBEDDING, HEAD, check_counts, check_meaning
from spqfmt.importers._gguf_models import Config, Facts, GgufModel, table_shape
from spqfmt.importers._gguf_reader import GgufHeader, GgufTensor
from spqfmt.importers._gguf_rope import floats_of, llama3_rope
from spqfmt.importers._gguf_tensors import StoredTensor, dtype_of
from spqfmt.importers._gguf_tokenizer import end_token_ids
from spqfmt.importers._source_file import same_bytes
from spqfmt.importers.base import Asset

ROPE_FACTORS = "rope_freqs.weight"


class NoModelError(Exception):
    """The file is sound, but transformers' model of it is not known here."""


@dataclass(frozen=True)
class KnownModel:
    """A model's tensors and small files, but for the tokenizer's."""

    class_name: str
    tensors: tuple[StoredTensor, ...]
    assets: tuple[Asset, ...] = ()
    tied: Mapping[str, str] = field(default_factory=dict)
    """The names of tensors that are another one, with the name of that."""
    copies: Mapping[str, StoredTensor] = field(default_factory=dict)
    """Those of them that lie in the file nevertheless, with the bytes of the other."""
    is_complete: bool = False
    """Whether these are known to be all tensors of the class."""


def as_it_is(header: GgufHeader) -> KnownModel:
    """The tensors under their own names, in their own order of rows."""
    tensors = (StoredTensor(tensor.name, tensor.shape, (tensor,), AS_STORED) for tensor in header.tensors)
    return KnownModel("", tuple(tensors))


def table_model(path: Path, header: GgufHeader, model: GgufModel) -> KnownModel:
    """The model of one of MODELS. Raises NoModelError, and ImporterError for metadata that contradict themselves."""
    names = {
        tensor.name: _hf_name(model, tensor.name) for tensor in header.tensors if tensor.name != ROPE_FACTORS
    }
    facts = facts_of(path, header)
    tied = is_tied(header)
    try:
        check_counts(facts)
        check_meaning(facts)
        config = model.config(facts)
    except ValueError as error:
        raise ImporterError(f"{path}: {error}; convert the model again") from None
    factors = next((tensor for tensor in header.tensors if tensor.name == ROPE_FACTORS), None)
    if factors is not None:
        config["rope_parameters"] = llama3_rope(path, floats_of(factors), config)
    config = whole_config(header, config, model.class_name, tied=tied)
    lacking = [name for name in _due(model, facts) if name not in names and name != HEAD]
    if lacking:
        raise NoModelError(f"it has no tensor for {_hf_name(model, lacking[0])} of {model.class_name}")

    def stored(tensor: GgufTensor, name: str) -> StoredTensor:
        if tensor.shape != table_shape(tensor.name, config):
            raise _other_shape(path, tensor)
        change = model.change(name, tensor.shape, config)
        shape = tensor.shape[::-1] if change.transposed else tensor.shape
        return checked(path, StoredTensor(name, shape, (tensor,), change))

    found = {
        tensor.name: stored(tensor, names[tensor.name]) for tensor in header.tensors if tensor.name in names
    }
    embedding, head = (f"{model.names[name]}.weight" for name in ("token_embd", "output"))
    copy = found.pop(HEAD, None) if tied else None
    return KnownModel(
        class_name=model.class_name,
        tensors=tuple(found.values()),
        assets=config_assets(header, config),
        tied={head: embedding} if tied else {},
        copies={} if copy is None else {head: copy},
        is_complete=model.is_without_biases and {*names} <= {*_due(model, facts)},
    )


def _due(model: GgufModel, facts: Facts) -> list[str]:
    """Name the weights that a model of so many layers has, by ggml's names, once `check_counts` has found these."""
    n_layers = facts.count("block_count")
    return [
        f"{name.format(layer)}.weight"
        for name in model.names
        for layer in range(n_layers if "{}" in name else 1)
    ]


def checked(path: Path, stored: StoredTensor) -> StoredTensor:
    """Return the tensor, once its shape is checked. Raises ImporterError where the metadata say another one."""
    tensor = stored.tensor
    fits = stored.change.fits(stored.shape, prod(tensor.shape[: max(1, len(tensor.shape) - 1)]))
    if not fits or prod(stored.shape) != prod(tensor.shape):
        raise _other_shape(path, tensor)
    return stored


def _other_shape(path: Path, tensor: GgufTensor) -> ImporterError:
    return ImporterError(
        f"{path}: tensor {tensor.name} has the shape {list(tensor.shape)}, which is not that of its metadata; "
        "convert the model again"
    )


def facts_of(path: Path, header: GgufHeader) -> Facts:
    """What configs are made of. Raises ImporterError for a file without an embedding."""
    architecture = str(header.metadata["general.architecture"])
    facts = Facts(architecture, header.metadata, {tensor.name: tensor.shape for tensor in header.tensors})
    if EMBEDDING not in facts.shapes:
        raise ImporterError(f"{path}: no tensor {EMBEDDING}; convert the model again")
    return facts


def whole_config(header: GgufHeader, config: Config, class_name: str, *, tied: bool) -> Config:
    """The config with what all architectures have."""
    n_weights: dict[str, int] = {}
    for tensor in header.tensors:
        if len(tensor.shape) > 1:
            dtype = dtype_of(tensor)
            n_weights[dtype] = n_weights.get(dtype, 0) + prod(tensor.shape)
    main = max(n_weights, key=lambda dtype: n_weights[dtype], default="f16")
    tokens = {}
    for key in ("bos", "eos", "padding"):
        token = header.metadata.get(f"tokenizer.ggml.{key}_token_id")
        tokens[f"{key.removesuffix('ding')}_token_id"] = token if isinstance(token, int) else None
    names = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
    return {
        "architectures": [class_name],
        **config,
        **tokens,
        "tie_word_embeddings": tied,
        "dtype": names.get(main, "float32"),
    }


def config_assets(header: GgufHeader, config: Config) -> tuple[Asset, ...]:
    """The config, and what it says of generating."""
    ends = end_token_ids(header.metadata)
    tokens = {
        "bos_token_id": config["bos_token_id"],
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": config["pad_token_id"],
    }
    if "decoder_start_token_id" in config:
        tokens["decoder_start_token_id"] = config["decoder_start_token_id"]
    generation = {key: value for key, value in tokens.items() if value is not None}
    return Asset("config.json", _json(config)), Asset("generation_config.json", _json(generation))


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def is_tied(header: GgufHeader) -> bool:
    """No output matrix, or one with the very bytes of the embedding (as GPT-2 files have)."""
    by_name = {tensor.name: tensor for tensor in header.tensors}
    output, embedding = by_name.get(HEAD), by_name.get(EMBEDDING)
    if output is None or embedding is None:
        return output is None
    if (output.shape, output.ggml_type) != (embedding.shape, embedding.ggml_type):
        return False
    return same_bytes((output.file, output.offset), (embedding.file, embedding.offset), output.n_bytes)


def _hf_name(model: GgufModel, name: str) -> str:
    match = re.fullmatch(r"(?:(blk)\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if match is not None:
        block, index, stem, suffix = match.groups()
        template = model.names.get(f"blk.{{}}.{stem}" if block else stem)
        if template is not None:
            return f"{template.format(index)}.{suffix}"
    raise NoModelError(f"tensor {name} is not part of {model.class_name} as known here")
