"""GGUF: one file for llama.cpp, its blocks holding exactly what the codes stand for.

Values are those of the .spq file before they were rounded to the weights' dtype: scale * (code - zero point).
Embeddings and heads whose codes fit no blocks are written as plain values, in their dtype; tensors of one dimension as
F32.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spqfmt.errors import EncodeError, OptionError
from spqfmt.exporters.base import OF_NO_LAYER, Exported, ExportModel, refuse
from spqfmt.exporters.folder import check_gguf_name, whole_file
from spqfmt.exporters.gguf_models import GgufFamily, family_of, keys_of, rope_divisors
from spqfmt.exporters.gguf_tensors import FORM, GgufOutput, Tensors, stacks
from spqfmt.exporters.gguf_vocabulary import vocabulary_keys

if TYPE_CHECKING:
    import gguf

_BUFFERS = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")
"""Ends of what old checkpoints hold and no model has."""
_ROPE_FACTORS = "rope_freqs.weight"


class GgufExport:
    """All that is a matrix of codes as blocks of ggml."""

    name = "gguf"

    def export(self, model: ExportModel, out: Path) -> Exported:
        """Write one file, whose name ends in .gguf."""
        check_gguf_name(out)
        if find_spec("gguf") is None:
            raise OptionError("GGUF is written with the package gguf; pip install 'spqfmt[gguf]'")
        family = family_of(model.config)
        keys = keys_of(family, model.config)
        n_layers = keys[f"{family.architecture}.block_count"]
        tensors = Tensors(family, model.config, _names(family, n_layers))
        kept = [w for w in model.weights if w.tied_to is None and not w.name.endswith(_BUFFERS)]
        alone, experts = stacks(kept)
        written: list[GgufOutput] = []
        plain = []
        for weight in alone:
            made, is_plain = tensors.of(weight)
            written.append(made)
            plain += [weight.name] if is_plain else []
        written += [tensors.stack(weights) for weights in experts]
        divisors = rope_divisors(model.config)
        if divisors is not None:
            written.append(GgufOutput(_ROPE_FACTORS, divisors.shape, "F32", lambda: divisors))
        embedding = next((tensor for tensor in written if tensor.name == "token_embd.weight"), None)
        if embedding is None:
            raise EncodeError("it has no token embedding, which GGUF needs")
        keys |= {f"{family.architecture}.vocab_size": embedding.shape[0]}
        keys |= vocabulary_keys(_small_files(model.assets), model.config, embedding.shape[0])
        _write(out, family.architecture, {"general.name": out.stem, **keys}, written)
        return Exported((out.name,), dict.fromkeys(plain, OF_NO_LAYER), is_alone=True)


def _names(family: GgufFamily, n_layers: int) -> Callable[[str], str]:
    """Return what gives ggml's names, and raises EncodeError for a tensor that has none."""
    import gguf

    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(numbers[family.architecture], n_layers)

    def name_of(name: str) -> str:
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            refuse(name, f"it is no part of a {family.architecture}", FORM)
        return str(found)

    return name_of


def _small_files(assets: Mapping[str, Iterable[bytes] | bytes]) -> dict[str, bytes]:
    """The files that a vocabulary is made of."""
    names = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja")
    found = {name: assets[name] for name in names if name in assets}
    return {name: data if isinstance(data, bytes) else b"".join(data) for name, data in found.items()}


def _write(out: Path, architecture: str, keys: Mapping[str, Any], tensors: list[GgufOutput]) -> None:
    """Write the file whole: header, metadata, the table of tensors, their bytes one after the other."""
    import gguf

    counts = Counter[str]()
    for tensor in tensors:
        counts[tensor.type] += int(np.prod(tensor.shape)) if len(tensor.shape) > 1 else 0
    usual = counts.most_common(1)[0][0]
    file_type = "ALL_F32" if usual == "F32" else f"MOSTLY_{usual}"
    with whole_file(out) as partial:
        writer = gguf.GGUFWriter(partial, architecture)
        try:
            writer.add_file_type(gguf.LlamaFileType[file_type])
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            for key, value in keys.items():
                _add(writer, key, value)
            for tensor in tensors:
                kind = gguf.GGMLQuantizationType[tensor.type]
                elements, n_bytes = gguf.GGML_QUANT_SIZES[kind]
                size = int(np.prod(tensor.shape)) // elements * n_bytes
                # The dtype is told by the type of ggml: any that is no byte will do.
                writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), size, kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for tensor in tensors:
                writer.write_tensor_data(np.ascontiguousarray(tensor.make()))
            for file in writer.fout or ():
                file.flush()
                os.fsync(file.fileno())
        finally:
            writer.close()


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """Add a key by the type of its value."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


EXPORTER = GgufExport()
