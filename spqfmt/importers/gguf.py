"""GGUF files: float tensors as they are, quantized ones dequantized, config and tokenizer rebuilt from the metadata.

Dtypes: F32, F16, BF16, F64 and integers stay what they are. MXFP4 becomes bf16, which holds its values exactly. Every
other block type becomes f16: a dequantized value is a float16 scale times a small integer (plus a float16 offset),
which in general only f32 holds exactly; rounding it to f16 costs at most 2^-11 of the value, far below the step of the
block, and halves what is stored. A value beyond float16's range is refused, never clipped. Method keep takes the codes
over as they are (_gguf_codes.py), and the bytes of blocks whose values stand in a book of vectors (IQ1 to IQ3).
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
from spqfmt.importers._gguf_reader import MAGIC, GgufHeader, GgufTensor, read_header
from spqfmt.importers._gguf_rope import llama3_rope
from spqfmt.importers._gguf_tensors import StoredTensor, dtype_of
from spqfmt.importers._gguf_tokenizer import end_token_ids, tokenizer_assets
from spqfmt.importers._layout import execution_key, role_of, segment_of, transposed_weights
from spqfmt.importers._source_file import SourceFile, same_bytes
from spqfmt.importers.base import Asset, SourceModel, SourceTensor

_ROPE_FACTORS = "rope_freqs.weight"


class GgufImporter:
    """One .gguf file of a single part."""

    kind = "gguf"

    def accepts(self, path: Path) -> bool:
        """A file that begins with GGUF, or claims to be one by its name."""
        if not path.is_file():
            return False
        with path.open("rb") as handle:
            return handle.read(len(MAGIC)) == MAGIC or path.suffix == ".gguf"

    def open(self, path: Path) -> SourceModel:
        """Open a GGUF file with its splits, as `Importer.open` says."""
        file = SourceFile(path)
        header = read_header(file)
        architecture = str(header.metadata.get("general.architecture", ""))
        model = MODELS.get(architecture)
        if model is None:
            raise ImporterError(
                f"{path}: GGUF architecture {architecture!r} is not known (known: {', '.join(MODELS)}); "
                "import the model's Hugging Face folder instead"
            )
        if header.metadata.get("split.count", 1) not in {0, 1}:
            raise ImporterError(
                f"{path}: one part of a split GGUF; join the parts first (llama-gguf-split --merge)"
            )
        tied = _is_tied(file, header)
        config = _config(file, header, architecture, model, tied=tied)
        assets = (
            Asset("config.json", _json(config)),
            Asset("generation_config.json", _json(_generation(config, end_token_ids(header.metadata)))),
        )
        return SourceModel(
            tensors=_tensors(file, header, model, config, tied=tied),
            assets=assets + tokenizer_assets(path, header.metadata),
            architecture=model.class_name,
            source_kind=self.kind,
            files=(file,),
            named_files={path.name: file},
            weight_files=frozenset({path.name}),
        )


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _config(
    file: SourceFile, header: GgufHeader, architecture: str, model: GgufModel, *, tied: bool
) -> Config:
    facts = Facts(architecture, header.metadata, {tensor.name: tensor.shape for tensor in header.tensors})
    if "token_embd.weight" not in facts.shapes:
        raise ImporterError(f"{file.path}: no tensor token_embd.weight; convert the model again")
    try:
        config = model.config(facts)
    except ValueError as error:
        raise ImporterError(f"{file.path}: {error}; convert the model again") from None
    factors = next((tensor for tensor in header.tensors if tensor.name == _ROPE_FACTORS), None)
    if factors is not None:
        data = file.read(factors.offset, factors.n_bytes)
        values = np.frombuffer(data, dtype="<f4").astype(np.float64)
        config["rope_parameters"] = llama3_rope(file.path, values, config)
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


def _is_tied(file: SourceFile, header: GgufHeader) -> bool:
    """No output matrix, or one with the very bytes of the embedding (as GPT-2 files have)."""
    by_name = {tensor.name: tensor for tensor in header.tensors}
    output, embedding = by_name.get("output.weight"), by_name.get("token_embd.weight")
    if output is None or embedding is None:
        return output is None
    if (output.shape, output.ggml_type) != (embedding.shape, embedding.ggml_type):
        return False
    return same_bytes((file, output.offset), (file, embedding.offset), output.n_bytes)


def _hf_name(path: Path, model: GgufModel, name: str) -> str:
    match = re.fullmatch(r"(?:(blk)\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if match is not None:
        block, index, stem, suffix = match.groups()
        template = model.names.get(f"blk.{{}}.{stem}" if block else stem)
        if template is not None:
            return f"{template.format(index)}.{suffix}"
    raise ImporterError(
        f"{path}: tensor {name} is not part of {model.class_name} as known here; import the Hugging Face folder instead"
    )


def _tensors(
    file: SourceFile, header: GgufHeader, model: GgufModel, config: Config, *, tied: bool
) -> tuple[SourceTensor, ...]:
    sources = {
        _hf_name(file.path, model, tensor.name): tensor
        for tensor in header.tensors
        if tensor.name != _ROPE_FACTORS and not (tied and tensor.name == "output.weight")
    }
    embedding = model.names["token_embd"] + ".weight"
    shapes = {
        name: tensor.shape[::-1] if model.transposes and ".h." in name else tensor.shape
        for name, tensor in sources.items()
    }
    is_float = {name: dtype_of(tensor)[0] in "fb" for name, tensor in sources.items()}
    linear = [name for name in sources if role_of(name, shapes[name], is_float=is_float[name]) == "linear"]
    transposed = transposed_weights(shapes, linear)
    head = model.names["output"] + ".weight"

    def stored(tensor: GgufTensor, name: str) -> StoredTensor:
        return StoredTensor(file=file, tensor=tensor, name=name, model=model, config=config)

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
