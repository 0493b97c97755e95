"""Hugging Face folders: config.json and one or more safetensors files. Pickled weights are never opened."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spqfmt.errors import ImporterError
from spqfmt.importers._layout import execution_key, role_of, segment_of, transposed_weights
from spqfmt.importers._quantized import quantized_by
from spqfmt.importers._safetensors import Stored, loader, read_header, same_bits
from spqfmt.importers._source_file import SourceFile
from spqfmt.importers._weight_files import WeightFiles, explain_no_weights, weight_files
from spqfmt.importers.base import Asset, SourceModel, SourceTensor

_FLOATS = frozenset({"f64", "f32", "f16", "bf16", "f8_e4m3", "f8_e5m2"})
_ASSET_SUFFIXES = frozenset({".json", ".txt", ".model", ".jinja", ".tiktoken"})
_TOKEN_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in|tok_embeddings)\.weight$")
# The names that FORMAT.md section 7 allows; a model's own files have no others.
_ASSET_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}")


class HuggingFaceImporter:
    """A folder of safetensors files as `save_pretrained` writes it."""

    kind = "huggingface"

    def accepts(self, path: Path) -> bool:
        """Any folder: one without weights deserves this importer's message."""
        return path.is_dir()

    def open(self, path: Path) -> SourceModel:
        """See `Importer.open`."""
        # As they are before any is read.
        asset_files = _asset_files(path)
        config = read_config(path)
        weights, rival = weight_files(path, config)
        stored, files = _read_headers(weights)
        if rival is not None:
            _refuse_another(weights, stored, rival)
        architecture = _architecture(config)
        return SourceModel(
            tensors=_tensors(stored, config, architecture),
            assets=tuple(
                Asset(file.path.relative_to(path).as_posix(), file.read_all()) for file in asset_files
            ),
            architecture=architecture,
            source_kind=self.kind,
            quantized=quantized_by(config, ((name, t.shape, t.dtype) for name, t in stored.items())),
            files=(*files, *asset_files),
        )


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json as a dict."""
    file = folder / "config.json"
    if not file.is_file():
        explain_no_weights(folder)
        raise ImporterError(f"{folder}: no config.json; give the folder that a model was saved to")
    try:
        config = json.loads(file.read_bytes())
    except ValueError as error:
        raise ImporterError(f"{file}: not valid JSON ({error}); download the file again") from None
    if not isinstance(config, dict):
        raise ImporterError(f"{file}: not a JSON object; download the file again")
    return config


def _read_headers(weights: WeightFiles) -> tuple[dict[str, Stored], tuple[SourceFile, ...]]:
    """Every tensor of the files by its name, and the files."""
    stored: dict[str, Stored] = {}
    files = [SourceFile(path) for path in weights.files]
    for file in files:
        for name, entry in read_header(file).items():
            if name in stored:
                raise ImporterError(f"{file.path}: tensor {name} is also in {stored[name].file.path.name}")
            stored[name] = entry
    for name, shard in weights.promised.items():
        if name not in stored:
            raise ImporterError(
                f"{weights.named_by.with_name(shard)}: tensor {name} is named in the index but missing; "
                "download it again"
            )
    if weights.promised:
        files.append(SourceFile(weights.named_by))
    return stored, tuple(files)


def _refuse_another(weights: WeightFiles, stored: Mapping[str, Stored], rival: WeightFiles) -> None:
    """Raise unless the second set of files holds the same model: which one is old cannot be told."""
    others, _ = _read_headers(rival)
    if others.keys() != stored.keys() or not all(same_bits(entry, others[n]) for n, entry in stored.items()):
        raise ImporterError(
            f"{weights.named_by}: another model than the one that {rival.named_by.name} beside it names "
            f"({rival.files[0].name} and on); take away what is old"
        )


def _tensors(
    stored: Mapping[str, Stored], config: Mapping[str, Any], architecture: str
) -> tuple[SourceTensor, ...]:
    roles = {
        name: role_of(name, entry.shape, is_float=entry.dtype in _FLOATS) for name, entry in stored.items()
    }
    transposed = transposed_weights(
        {name: entry.shape for name, entry in stored.items()},
        [name for name, role in roles.items() if role == "linear"],
    )
    head, embedding, tied = _tied_head(stored, config, architecture)
    names = sorted({*stored, head} if head is not None and tied else stored, key=execution_key)
    tensors = []
    for name in names:
        source = embedding if name == head and tied and embedding is not None else name
        entry = stored[source]
        tensors.append(
            SourceTensor(
                name=name,
                shape=entry.shape,
                dtype=entry.dtype,
                segment=segment_of(name),
                role=role_of(name, entry.shape, is_float=entry.dtype in _FLOATS),
                transposed=name in transposed,
                tied_to=source if source != name else None,
                load=loader(source, entry),
            )
        )
    return tuple(tensors)


def _tied_head(
    stored: Mapping[str, Stored], config: Mapping[str, Any], architecture: str
) -> tuple[str | None, str | None, bool]:
    """(head, embedding, tied): whether the output head shares the token embedding's values.

    Without a stored head a language model must use its embedding (the config often leaves the flag at its default).
    With a stored one the config has to say so and the bits have to agree: a copy that the config does not call tied
    would come back as an untied model, so it stays a tensor of its own.
    """
    embeddings = [name for name in stored if _TOKEN_EMBEDDING.search(name)]
    if len(embeddings) != 1:
        return None, None, False
    embedding = embeddings[0]
    head = next((name for name in stored if re.fullmatch(r"(.*\.)?(lm_head|embed_out)\.weight", name)), None)
    flag = config.get("tie_word_embeddings", _text_config(config).get("tie_word_embeddings"))
    if head is None:
        is_language_model = architecture.endswith(("ForCausalLM", "LMHeadModel"))
        return "lm_head.weight", embedding, is_language_model and flag is not False
    first, second = stored[embedding], stored[head]
    return head, embedding, bool(flag) and same_bits(first, second)


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    text = config.get("text_config")
    return text if isinstance(text, dict) else {}


def _architecture(config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""


def _asset_files(folder: Path) -> tuple[SourceFile, ...]:
    """Config, tokenizer and chat templates; not the weight index, which describes files that stay behind."""
    files = [file for file in folder.iterdir() if file.is_file() and file.suffix in _ASSET_SUFFIXES]
    files += (folder / "additional_chat_templates").glob("*.jinja")
    return tuple(
        SourceFile(file)
        for file in sorted(files)
        if not file.name.endswith(".index.json") and _ASSET_NAME.fullmatch(file.name)
    )


IMPORTER = HuggingFaceImporter()
