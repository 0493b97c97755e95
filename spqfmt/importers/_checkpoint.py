"""Weights files of one model -> source tensors: safetensors and torch's, single or in shards."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from spqfmt.errors import ImporterError
from spqfmt.importers._layout import execution_key, role_of, segment_of, transposed_weights
from spqfmt.importers._pickles import read_pickle
from spqfmt.importers._safetensors import METADATA, Header, Stored, loader, read_header, same_bits
from spqfmt.importers._source_file import SourceFile
from spqfmt.importers._weight_files import WeightFiles
from spqfmt.importers.base import SourcePlace, SourceTensor

_FLOATS = frozenset({"f64", "f32", "f16", "bf16", "f8_e4m3", "f8_e5m2"})
_TOKEN_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in|tok_embeddings)\.weight$")
# Longer values of a safetensors header are no facts about the model.
_MAX_FACT_BYTES = 1 << 16


def read_file(file: SourceFile) -> Header:
    """Read what one file says of its tensors, by its suffix. Raises ImporterError."""
    return read_header(file) if file.path.suffix.lower() == ".safetensors" else read_pickle(file)


def read_headers(
    weights: WeightFiles,
) -> tuple[list[Header], dict[str, Stored], tuple[SourceFile, ...]]:
    """The files' headers, every tensor by its name, and the files."""
    stored: dict[str, Stored] = {}
    files = [SourceFile(path) for path in weights.files]
    headers = [read_file(file) for file in files]
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
                f"{weights.named_by.parent / shard}: tensor {name} is named in the index but missing; "
                "download it again"
            )
    if weights.promised:
        files.append(SourceFile(weights.named_by))
    return headers, stored, tuple(files)


def refuse_another(weights: WeightFiles, stored: Mapping[str, Stored], rival: WeightFiles) -> None:
    """Raise unless the second set of files holds the same model: which one is old cannot be told."""
    try:
        _, others, _ = read_headers(rival)
    except ImporterError:
        return  # nothing that could be loaded
    if others.keys() != stored.keys() or not all(same_bits(entry, others[n]) for n, entry in stored.items()):
        raise ImporterError(
            f"{weights.named_by}: another model than the one that {rival.named_by.name} beside it names "
            f"({rival.files[0].name} and on); take away what is old"
        )


def source_tensors(
    stored: Mapping[str, Stored], config: Mapping[str, Any], architecture: str, folder: Path, prefix: str = ""
) -> tuple[SourceTensor, ...]:
    """Make the source's tensors, in execution order. `folder` is the source's, in which files are named.

    `prefix` goes before the names of tensors and segments: of a part of a pipeline, its folder and a slash.
    """
    roles = {
        name: role_of(name, entry.shape, is_float=entry.dtype in _FLOATS) for name, entry in stored.items()
    }
    transposed = transposed_weights(
        {name: entry.shape for name, entry in stored.items()},
        [name for name, role in roles.items() if role == "linear"],
    )
    head, embedding, tied = _tied_head(stored, config, architecture)
    names = sorted({*stored, head} if head is not None and tied else stored, key=execution_key)
    holders: dict[tuple[object, ...], str] = {}
    tensors = []
    for name in names:
        source = embedding if name == head and tied and embedding is not None else name
        entry = stored[source]
        if entry.offset is not None and entry.n_bytes:  # torch saves what tensors share once
            of_place = entry.file.path, entry.offset, entry.shape, entry.dtype
            source = holders.setdefault(of_place, source)
        own = stored.get(name)
        tensors.append(
            SourceTensor(
                name=prefix + name,
                shape=entry.shape,
                dtype=entry.dtype,
                segment=prefix + segment_of(name),
                role=role_of(name, entry.shape, is_float=entry.dtype in _FLOATS),
                transposed=name in transposed,
                tied_to=prefix + source if source != name else None,
                load=loader(source, entry),
                place=None if own is None else place_of(own, folder),
            )
        )
    return tuple(tensors)


def place_of(entry: Stored, folder: Path) -> SourcePlace | None:
    """Where a tensor lies, its file by its name in `folder`."""
    if entry.offset is None:
        return None
    return SourcePlace(entry.file.path.relative_to(folder).as_posix(), entry.offset)


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


def architecture_of(config: Mapping[str, Any]) -> str:
    """The class that a config names first; empty where it names none."""
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""


def facts_of(headers: Iterable[Header]) -> tuple[dict[str, str], dict[str, str]]:
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
