"""Hugging Face folders: config.json and one or more safetensors files. Pickled weights are never opened."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from spqfmt.errors import ImporterError
from spqfmt.importers._beside import files_beside
from spqfmt.importers._layout import execution_key, role_of, segment_of, transposed_weights
from spqfmt.importers._quantized import quantized_by
from spqfmt.importers._safetensors import METADATA, Header, Stored, loader, read_header, same_bits
from spqfmt.importers._source_file import SourceFile
from spqfmt.importers._weight_files import WeightFiles, explain_no_weights, weight_files
from spqfmt.importers.base import Asset, Place, SourceModel, SourceTensor
from spqfmt.records import FLOATS
from spqfmt.wire import SMALL_FLOATS

_FLOATS = FLOATS | SMALL_FLOATS.keys()
_TOKEN_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in|tok_embeddings)\.weight$")
# Longer values of a safetensors header are no facts about the model.
_MAX_FACT_BYTES = 1 << 16


class HuggingFaceImporter:
    """A folder of safetensors files as `save_pretrained` writes it."""

    kind = "huggingface"

    def accepts(self, path: Path) -> bool:
        """Any folder: one without weights deserves this importer's message."""
        return path.is_dir()

    def open(self, path: Path) -> SourceModel:
        """See `Importer.open`."""
        # As they are before any is read.
        beside = files_beside(path)
        config = read_config(path)
        weights, rival = weight_files(path, config)
        headers, stored, files = _read_headers(weights)
        if rival is not None:
            _refuse_another(weights, stored, rival)
        architecture = _architecture(config)
        facts, lost = _facts(headers)
        own = {file.path.name for file in files}
        named = {**beside.named, **{file.path.name: file for file in files}}
        return SourceModel(
            tensors=_tensors(stored, config, architecture),
            assets=tuple(Asset(name, file.read_all()) for name, file in beside.kept.items()),
            architecture=architecture,
            source_kind=self.kind,
            quantized=quantized_by(config, ((name, t.shape, t.dtype) for name, t in stored.items())),
            files=(*files, *beside.kept.values()),
            named_files=dict(sorted(named.items())),
            other_weights=beside.weights - own,
            facts=facts,
            left_out={n: reason for n, reason in beside.left_out.items() if n not in own} | lost,
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


def _read_headers(
    weights: WeightFiles,
) -> tuple[list[Header], dict[str, Stored], tuple[SourceFile, ...]]:
    """The files' headers, every tensor by its name, and the files."""
    stored: dict[str, Stored] = {}
    files = [SourceFile(path) for path in weights.files]
    headers = [read_header(file) for file in files]
    for header in headers:
        for name, entry in header.tensors.items():
            if name in stored:
                raise ImporterError(
                    f"{header.file.path}: tensor {name} is also in {stored[name].file.path.name}"
                )
            stored[name] = entry
    for name, shard in weights.promised.items():
        if name not in stored:
            raise ImporterError(
                f"{weights.named_by.with_name(shard)}: tensor {name} is named in the index but missing; "
                "download it again"
            )
    if weights.promised:
        files.append(SourceFile(weights.named_by))
    return headers, stored, tuple(files)


def _refuse_another(weights: WeightFiles, stored: Mapping[str, Stored], rival: WeightFiles) -> None:
    """Raise unless the second set of files holds the same model: which one is old cannot be told."""
    try:
        _, others, _ = _read_headers(rival)
    except ImporterError:
        return  # nothing that could be loaded
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
                place=Place(own.file.path.name, own.offset) if (own := stored.get(name)) else None,
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


def _facts(headers: Iterable[Header]) -> tuple[dict[str, str], dict[str, str]]:
    """What the files' headers say of the model, and what is left out of it, with the reason."""
    facts: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for header in headers:
        for key, value in header.metadata.items():
            if len(key.encode()) + len(value.encode()) > _MAX_FACT_BYTES:
                left_out[f"{header.file.path.name}: {METADATA} {key[:80]}"] = "a value of more than 64 KiB"
            elif facts.setdefault(key, value) != value:
                left_out[f"{header.file.path.name}: {METADATA} {key}"] = "an earlier file has another value"
    return facts, left_out


IMPORTER = HuggingFaceImporter()
