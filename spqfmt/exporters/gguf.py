"""GGUF: one file for llama.cpp, its blocks holding exactly what the codes stand for.

Values are those of the .spq file before they were rounded to the weights' dtype: scale * (code - zero point).
Embeddings and heads whose codes fit no blocks are written as plain values, in their dtype; tensors of one dimension as
F32.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spqfmt.errors import EncodeError, OptionError
from spqfmt.exporters.base import Exported, ExportModel, ExportWeight, refuse
from spqfmt.exporters.folder import whole_file
from spqfmt.exporters.gguf_models import GgufFamily, family_of, interleaved, keys_of, rope_divisors
from spqfmt.exporters.gguf_types import blocks, fit
from spqfmt.exporters.gguf_vocabulary import vocabulary_keys
from spqfmt.kernels.ggml_types import BlockType
from spqfmt.kernels.torch_arrays import to_numpy

if TYPE_CHECKING:
    import gguf

_FORM = "GGUF"
_PLAIN = {"f32": "F32", "f16": "F16", "bf16": "BF16"}
_BUFFERS = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")
"""Ends of what old checkpoints hold and no model has."""
_ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class _Tensor:
    """A tensor of the file. `make` gives its bytes, in any shape."""

    name: str
    shape: tuple[int, ...]
    type: str
    make: Callable[[], np.ndarray[Any, Any]]


class GgufExport:
    """All that is a matrix of codes as blocks of ggml."""

    name = "gguf"

    def export(self, model: ExportModel, out: Path) -> Exported:
        """Write one file, whose name ends in .gguf."""
        check_name(out)
        if find_spec("gguf") is None:
            raise OptionError("GGUF is written with the package gguf; pip install 'spqfmt[gguf]'")
        family = family_of(model.config)
        keys = keys_of(family, model.config)
        n_layers = keys[f"{family.architecture}.block_count"]
        name_of = _names(family, n_layers)
        tensors: list[_Tensor] = []
        plain = []
        for weight in model.weights:
            if weight.tied_to is not None or weight.name.endswith(_BUFFERS):
                continue
            name = name_of(weight.name)
            kind, why = _blocks_of(weight) if weight.has_codes else (None, "")
            if why and weight.role not in {"embedding", "head"}:
                refuse(weight.name, why, _FORM)
            plain += [weight.name] if why else []
            made = _plain_values(weight, family, model.config, name)
            if kind is not None:
                made = _coded(weight, kind, family, config=model.config, name=name)
            tensors.append(made)
        divisors = rope_divisors(model.config)
        if divisors is not None:
            tensors.append(_Tensor(_ROPE_FACTORS, divisors.shape, "F32", lambda: divisors))
        embedding = next((tensor for tensor in tensors if tensor.name == "token_embd.weight"), None)
        if embedding is None:
            raise EncodeError("it has no token embedding, which GGUF needs")
        keys |= {f"{family.architecture}.vocab_size": embedding.shape[0]}
        keys |= vocabulary_keys(_small_files(model.assets), model.config, embedding.shape[0])
        _write(out, family.architecture, {"general.name": out.stem, **keys}, tensors)
        return Exported((out.name,), tuple(plain), is_alone=True)


def check_name(out: Path) -> None:
    """Raise OptionError for a file that nobody would take for a GGUF."""
    if out.suffix != ".gguf":
        raise OptionError(f"{out}: the name of a GGUF file ends in .gguf")


def _names(family: GgufFamily, n_layers: int) -> Callable[[str], str]:
    """Return what gives ggml's names, and raises EncodeError for a tensor that has none."""
    import gguf

    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(numbers[family.architecture], n_layers)

    def name_of(name: str) -> str:
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            refuse(name, f"it is no part of a {family.architecture}", _FORM)
        return str(found)

    return name_of


def _blocks_of(weight: ExportWeight) -> tuple[BlockType | None, str]:
    """The type of blocks that hold its codes, or why none does."""
    if weight.why_no_grid:
        return None, weight.why_no_grid
    return fit(weight.grid(), weight.codes())


def _order(weight: ExportWeight, family: GgufFamily, config: Mapping[str, Any]) -> Any:
    """Which row of the matrix is each row of the file's; None where they are in order."""
    return interleaved(weight.name, weight.shape[0], config) if family.interleaves else None


def _coded(
    weight: ExportWeight, kind: BlockType, family: GgufFamily, config: Mapping[str, Any], name: str
) -> _Tensor:
    order = _order(weight, family, config)

    def make() -> Any:
        made = blocks(kind, weight.grid(), weight.codes())
        return made if order is None else made[order]

    shape = weight.shape[::-1] if weight.is_transposed else weight.shape
    return _Tensor(name, shape, kind.name, make)


def _plain_values(weight: ExportWeight, family: GgufFamily, config: Mapping[str, Any], name: str) -> _Tensor:
    """The values in their own dtype; those of one dimension in F32, which llama.cpp wants of norms and biases."""
    shape, order = weight.shape, _order(weight, family, config)
    is_wide = len(shape) < 2
    adds = family.adds_one and name.endswith("norm.weight")
    turns = family.architecture == "gpt2" and ".h." in weight.name and len(shape) == 2
    if weight.dtype not in _PLAIN:
        refuse(weight.name, f"its values are {weight.dtype}", _FORM)

    def make() -> Any:
        value = weight.load()
        value = value.float() if is_wide or adds else value
        value = value + 1 if adds else value
        found = to_numpy(value.t() if turns else value)
        return found if order is None else found[order]

    return _Tensor(
        name,
        shape=shape[::-1] if turns else shape,
        type="F32" if is_wide or adds else _PLAIN[weight.dtype],
        make=make,
    )


def _small_files(assets: Mapping[str, Iterable[bytes] | bytes]) -> dict[str, bytes]:
    """The files that a vocabulary is made of."""
    names = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja")
    found = {name: assets[name] for name in names if name in assets}
    return {name: data if isinstance(data, bytes) else b"".join(data) for name, data in found.items()}


def _write(out: Path, architecture: str, keys: Mapping[str, Any], tensors: list[_Tensor]) -> None:
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
