"""Hugging Face folders: config.json and one or more safetensors files. Pickled weights are never opened."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from spqfmt.errors import ImporterError
from spqfmt.importers._layout import execution_key, role_of, segment_of, transposed_weights
from spqfmt.importers._quantized import quantized_by
from spqfmt.importers.base import Asset, SourceModel, SourceTensor
from spqfmt.schemes.dense import DTYPES

if TYPE_CHECKING:
    import torch

_FLOATS = frozenset({"f64", "f32", "f16", "bf16", "f8_e4m3", "f8_e5m2"})
_ASSET_SUFFIXES = frozenset({".json", ".txt", ".model", ".jinja", ".tiktoken"})
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_SHARD = re.compile(r"^(?P<stem>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})\.safetensors$")
_TOKEN_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in|tok_embeddings)\.weight$")
# The names that FORMAT.md section 7 allows; a model's own files have no others.
_ASSET_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}")
# Rows compared at once when two tensors are checked for equal bits.
_COMPARE_ROWS = 4096


@dataclass(frozen=True)
class _Stored:
    """Where a tensor lies."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


class HuggingFaceImporter:
    """A folder of safetensors files as `save_pretrained` writes it."""

    kind = "huggingface"

    def accepts(self, path: Path) -> bool:
        """Any folder: one without weights deserves this importer's message."""
        return path.is_dir()

    def open(self, path: Path) -> SourceModel:
        """See `Importer.open`."""
        config = read_config(path)
        stored: dict[str, _Stored] = {}
        for file in _weight_files(path):
            for name, entry in _read_header(file).items():
                if name in stored:
                    raise ImporterError(f"{file}: tensor {name} is also in {stored[name].file.name}")
                stored[name] = entry
        _check_index(path, stored)
        architecture = _architecture(config)
        return SourceModel(
            tensors=_tensors(stored, config, architecture),
            assets=_assets(path),
            architecture=architecture,
            source_kind=self.kind,
            quantized=quantized_by(config, ((name, t.shape, t.dtype) for name, t in stored.items())),
        )


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json as a dict."""
    file = folder / "config.json"
    if not file.is_file():
        _explain_no_weights(folder)
        raise ImporterError(f"{folder}: no config.json; give the folder that a model was saved to")
    try:
        config = json.loads(file.read_bytes())
    except ValueError as error:
        raise ImporterError(f"{file}: not valid JSON ({error}); download the file again") from None
    if not isinstance(config, dict):
        raise ImporterError(f"{file}: not a JSON object; download the file again")
    return config


def _explain_no_weights(folder: Path) -> None:
    """Raise unless the folder holds safetensors files."""
    if any(folder.glob("*.safetensors")):
        return
    pickle = next((file for pattern in _PICKLES for file in sorted(folder.glob(pattern))), None)
    if pickle is not None:
        raise ImporterError(
            f"{pickle}: pickled weights can run code and are never opened; "
            "save the model as safetensors first (save_pretrained does)"
        )
    gguf = next(iter(sorted(folder.glob("*.gguf"))), None)
    if gguf is not None:
        raise ImporterError(f"{folder}: a folder with GGUF files; give the file, such as {gguf}")
    raise ImporterError(
        f"{folder}: no .safetensors files in this folder; give the folder that holds the weights"
    )


def _read_index(folder: Path) -> dict[str, str] | None:
    """Tensor name -> file name of model.safetensors.index.json, or None without one."""
    file = folder / "model.safetensors.index.json"
    if not file.is_file():
        return None
    try:
        weight_map = json.loads(file.read_bytes())["weight_map"]
        entries = {str(name): str(shard) for name, shard in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ImporterError(f"{file}: no valid weight_map in it; download the file again") from None
    outside = next((shard for shard in entries.values() if Path(shard).name != shard), None)
    if outside is not None:
        raise ImporterError(f"{file}: names the shard {outside!r}, which is not a plain file name")
    return entries


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up the model, in order of their names."""
    _explain_no_weights(folder)
    index = _read_index(folder)
    if index is not None:
        files = sorted({folder / shard for shard in index.values()})
        missing = next((file for file in files if not file.is_file()), None)
        if missing is not None:
            raise ImporterError(f"{missing}: this shard is named in the index but missing; download it again")
        return files
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        files_of = _SHARD.match(files[0].name)
        if files_of is None:
            return files
    shards = [match for file in files if (match := _SHARD.match(file.name))]
    stems = {(match["stem"], match["count"]) for match in shards}
    if len(stems) != 1:
        raise ImporterError(
            f"{folder}: several .safetensors files and no model.safetensors.index.json that says which belong together"
        )
    stem, count = next(iter(stems))
    for i in range(1, int(count) + 1):
        file = folder / f"{stem}-{i:05d}-of-{count}.safetensors"
        if not file.is_file():
            raise ImporterError(f"{file}: this shard is missing; download it again")
    return [folder / match.string for match in shards]


def _read_header(file: Path) -> dict[str, _Stored]:
    """Names, shapes and dtypes of one safetensors file; validated by the safetensors library."""
    entries: dict[str, _Stored] = {}
    file.open("rb").close()  # the library calls a file that may not be read missing
    try:
        with safe_open(file, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118 - the handle is not a mapping
                view = handle.get_slice(name)
                dtype = view.get_dtype().lower()  # the format has the same names, in small letters
                if dtype not in DTYPES:
                    raise ImporterError(
                        f"{file}: tensor {name} has dtype {view.get_dtype()}, which .spq cannot hold"
                    )
                entries[name] = _Stored(file, tuple(view.get_shape()), dtype)
    except SafetensorError as error:
        raise ImporterError(f"{file}: broken safetensors file ({error}); download it again") from None
    return entries


def _check_index(folder: Path, stored: Mapping[str, _Stored]) -> None:
    """Every tensor the index promises must be there."""
    for name, shard in (_read_index(folder) or {}).items():
        if name not in stored:
            raise ImporterError(
                f"{folder / shard}: tensor {name} is named in the index but missing; download it again"
            )


def _load(entry: _Stored, name: str) -> Callable[[], torch.Tensor]:
    def load() -> torch.Tensor:
        try:
            with safe_open(entry.file, framework="pt") as handle:
                tensor: torch.Tensor = handle.get_tensor(name)
        except SafetensorError as error:
            raise ImporterError(
                f"{entry.file}: tensor {name} cannot be read ({error}); download it again"
            ) from None
        return tensor

    return load


def _tensors(
    stored: Mapping[str, _Stored], config: Mapping[str, Any], architecture: str
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
                load=_load(entry, source),
            )
        )
    return tuple(tensors)


def _tied_head(
    stored: Mapping[str, _Stored], config: Mapping[str, Any], architecture: str
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
    alike = first.shape == second.shape and first.dtype == second.dtype
    return head, embedding, bool(flag) and alike and _same_bits(first, embedding, second, head)


def _same_bits(first: _Stored, first_name: str, second: _Stored, second_name: str) -> bool:
    """Compare two tensors of one shape and dtype, some rows at a time, up to the first difference."""
    import torch

    with safe_open(first.file, framework="pt") as left, safe_open(second.file, framework="pt") as right:
        left_view, right_view = left.get_slice(first_name), right.get_slice(second_name)
        for start in range(0, first.shape[0], _COMPARE_ROWS):
            rows = slice(start, start + _COMPARE_ROWS)
            if not torch.equal(left_view[rows].view(torch.uint8), right_view[rows].view(torch.uint8)):
                return False
    return True


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    text = config.get("text_config")
    return text if isinstance(text, dict) else {}


def _architecture(config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""


def _assets(folder: Path) -> tuple[Asset, ...]:
    """Config, tokenizer and chat templates; not the weight index, which describes files that stay behind."""
    files = [file for file in folder.iterdir() if file.is_file() and file.suffix in _ASSET_SUFFIXES]
    files += (folder / "additional_chat_templates").glob("*.jinja")
    return tuple(
        Asset(file.relative_to(folder).as_posix(), file.read_bytes())
        for file in sorted(files)
        if not file.name.endswith(".index.json") and _ASSET_NAME.fullmatch(file.name)
    )


IMPORTER = HuggingFaceImporter()
