"""GGUF files: float tensors as they are, quantized ones dequantized, config and tokenizer rebuilt from the metadata.

Dtypes: F32, F16, BF16, F64 and integers stay what they are. MXFP4 becomes bf16, which holds its values exactly. Every
other block type becomes f16: a dequantized value is a float16 scale times a small integer (plus a float16 offset),
which in general only f32 holds exactly; rounding it to f16 costs at most 2^-11 of the value, far below the step of the
block, and halves what is stored. A value beyond float16's range is refused, never clipped. Method keep takes the codes
over as they are (_gguf_codes.py), and the bytes of blocks whose values stand in a book of vectors (IQ1 to IQ3), or are
beyond that range.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spqfmt.errors import ImporterError
from spqfmt.importers._gguf_models import MODELS, Config, Facts, GgufModel
from spqfmt.importers._gguf_parts import read_parts
from spqfmt.importers._gguf_reader import MAGIC, GgufHeader, GgufTensor
from spqfmt.importers._gguf_rope import llama3_rope
from spqfmt.importers._gguf_tensors import StoredTensor, dtype_of
from spqfmt.importers._gguf_tokenizer import end_token_ids, tokenizer_assets
from spqfmt.importers._layout import execution_key, role_of, segment_of, transposed_weights
from spqfmt.importers._source_file import same_bytes
from spqfmt.importers.base import Asset, SourceModel, SourceTensor

_ROPE_FACTORS = "rope_freqs.weight"
_UNKNOWN = GgufModel("", {}, lambda facts: {}, lambda name, tensor, config: tensor)
"""A model that is not known: nothing of its file is changed."""


class GgufImporter:
    """A .gguf file, or one of the parts of a model in several."""

    kind = "gguf"

    def accepts(self, path: Path) -> bool:
        """A file that begins with GGUF, or claims to be one by its name."""
        if not path.is_file():
            return False
        with path.open("rb") as handle:
            return handle.read(len(MAGIC)) == MAGIC or path.suffix == ".gguf"

    def open(self, path: Path) -> SourceModel:
        """Open a GGUF file with its other parts, as `Importer.open` says."""
        files, header = read_parts(path)
        try:
            tensors, assets, class_name = _as_model(path, header)
            left_out: Mapping[str, str] = {}
        except _NoModelError as error:
            tensors, assets, class_name = _as_they_are(header), (), ""
            left_out = {"config.json": f"{error}: its tensors have ggml's names, and no model is loaded"}
        return SourceModel(
            tensors=tensors,
            assets=assets,
            architecture=class_name,
            source_kind=self.kind,
            files=files,
            named_files={file.path.name: file for file in files},
            weight_files=frozenset(file.path.name for file in files),
            own_files=frozenset(file.path.name for file in files),
            left_out=left_out,
        )


class _NoModelError(Exception):
    """The file is sound, but transformers' model of it is not known here."""


def _as_model(path: Path, header: GgufHeader) -> tuple[tuple[SourceTensor, ...], tuple[Asset, ...], str]:
    """The tensors and small files of transformers' model, and its class."""
    architecture = str(header.metadata.get("general.architecture", ""))
    model = MODELS.get(architecture)
    if model is None:
        raise _NoModelError(f"GGUF architecture {architecture!r} is not known")
    tied = _is_tied(header)
    names = {
        tensor.name: _hf_name(model, tensor.name) for tensor in header.tensors if tensor.name != _ROPE_FACTORS
    }
    config = _config(path, header, architecture, model=model, tied=tied)
    assets = (
        Asset("config.json", _json(config)),
        Asset("generation_config.json", _json(_generation(config, end_token_ids(header.metadata)))),
    )
    tensors = _tensors(header, model, config, names=names, tied=tied)
    return tensors, assets + tokenizer_assets(path, header.metadata), model.class_name


def _as_they_are(header: GgufHeader) -> tuple[SourceTensor, ...]:
    """The tensors under their own names, in their own order of rows."""
    names = {tensor.name: tensor.name for tensor in header.tensors}
    return _tensors(header, _UNKNOWN, {}, names=names, tied=False)


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _config(path: Path, header: GgufHeader, architecture: str, *, model: GgufModel, tied: bool) -> Config:
    facts = Facts(architecture, header.metadata, {tensor.name: tensor.shape for tensor in header.tensors})
    if "token_embd.weight" not in facts.shapes:
        raise ImporterError(f"{path}: no tensor token_embd.weight; convert the model again")
    try:
        config = model.config(facts)
    except ValueError as error:
        raise ImporterError(f"{path}: {error}; convert the model again") from None
    factors = next((tensor for tensor in header.tensors if tensor.name == _ROPE_FACTORS), None)
    if factors is not None:
        data = factors.file.read(factors.offset, factors.n_bytes)
        values = np.frombuffer(data, dtype="<f4").astype(np.float64)
        config["rope_parameters"] = llama3_rope(path, values, config)
    dtypes = [dtype_of(tensor) for tensor in header.tensors if len(tensor.shape) == 2]
    main = max(set(dtypes), key=dtypes.count, default="f16")
    for key in ("bos", "eos", "padding"):
        token = header.metadata.get(f"tokenizer.ggml.{key}_token_id")
        config[f"{key.removesuffix('ding')}_token_id"] = token if isinstance(token, int) else None
    names = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
    return {
        "architectures": [model.class_name],
        **config,
        "tie_word_embeddings": tied,
        "dtype": names.get(main, "float32"),
    }


def _generation(config: Config, ends: list[int]) -> Config:
    tokens = {
        "bos_token_id": config["bos_token_id"],
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": config["pad_token_id"],
    }
    return {key: value for key, value in tokens.items() if value is not None}


def _is_tied(header: GgufHeader) -> bool:
    """No output matrix, or one with the very bytes of the embedding (as GPT-2 files have)."""
    by_name = {tensor.name: tensor for tensor in header.tensors}
    output, embedding = by_name.get("output.weight"), by_name.get("token_embd.weight")
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
    raise _NoModelError(f"tensor {name} is not part of {model.class_name} as known here")


def _tensors(
    header: GgufHeader, model: GgufModel, config: Config, *, names: Mapping[str, str], tied: bool
) -> tuple[SourceTensor, ...]:
    """The tensors by the names that they are to have; others are left to the header."""
    sources = {
        names[tensor.name]: tensor
        for tensor in header.tensors
        if tensor.name in names and not (tied and tensor.name == "output.weight")
    }
    embedding, head = (f"{model.names.get(name, name)}.weight" for name in ("token_embd", "output"))
    shapes = {
        name: tensor.shape[::-1] if model.transposes and ".h." in name else tensor.shape
        for name, tensor in sources.items()
    }
    is_float = {name: dtype_of(tensor)[0] in "fb" for name, tensor in sources.items()}
    linear = [name for name in sources if role_of(name, shapes[name], is_float=is_float[name]) == "linear"]
    transposed = transposed_weights(shapes, linear)

    def stored(tensor: GgufTensor, name: str) -> StoredTensor:
        return StoredTensor(tensor=tensor, name=name, model=model, config=config)

    # A head that is tied may lie in the file nevertheless, its bytes those of the embedding.
    copies = [
        stored(tensor, embedding) for tensor in header.tensors if tied and tensor.name == "output.weight"
    ]
    tensors = []
    for name in sorted({*sources, head} if tied else sources, key=execution_key):
        source = embedding if tied and name == head else name
        one = stored(sources[source], source)
        own = one if source == name else next(iter(copies), None)
        tensors.append(
            SourceTensor(
                name=name,
                shape=shapes[source],
                dtype=dtype_of(sources[source]),
                segment=segment_of(name),
                role=role_of(name, shapes[source], is_float=is_float[source]),
                transposed=name in transposed,
                tied_to=source if source != name else None,
                load=one.load,
                form=one.form,
                stored=one.stored if one.form else None,
                place=None if own is None else own.place,
                turned=one.turned(shapes[source]),
                parts=() if own is None else own.parts,
            )
        )
    return tuple(tensors)


IMPORTER = GgufImporter()
