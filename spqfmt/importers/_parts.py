"""Folders of several models, each in a folder of its own, as one source.

A tensor has the name of its folder and a slash before its own: unet/conv_in.weight.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from spqfmt.errors import ImporterError
from spqfmt.importers._beside import files_beside, part_folders
from spqfmt.importers._checkpoint import facts_of, read_headers, source_tensors
from spqfmt.importers._quantized import quantized_by
from spqfmt.importers._source_file import SourceFile
from spqfmt.importers._weight_files import has_weights, weight_files
from spqfmt.importers.base import Asset, SourceModel, SourceTensor
from spqfmt.importers.huggingface import read_config
from spqfmt.importers.quantizers.registry import coded_tensors


def parts_with_weights(path: Path) -> list[Path]:
    """The folders that are parts of a model and hold weights: no tokenizer, no scheduler."""
    folders = sorted(path / name for name in part_folders(path))
    return [folder for folder in folders if folder.is_dir() and has_weights(folder)]


def open_parts(path: Path, kind: str, named_by: str) -> SourceModel:
    """Open all parts of a folder, which `named_by` names. Raises ImporterError."""
    beside = files_beside(path)
    tensors: list[SourceTensor] = []
    own: dict[str, SourceFile] = {}
    facts: dict[str, str] = {}
    quantized = ""
    parts: list[Callable[[], tuple[SourceTensor, ...]]] = []
    for folder in parts_with_weights(path):
        config = read_config(folder)
        weights, _ = weight_files(folder, config)
        headers, stored, files = read_headers(weights)
        prefix = f"{folder.name}/"
        tensors += source_tensors(stored, config, architecture="", folder=path, prefix=prefix)
        parts.append(partial(coded_tensors, stored, config, architecture="", folder=path, prefix=prefix))
        own |= {file.path.relative_to(path).as_posix(): file for file in files}
        beside_weights = [entry.name for entry in folder.iterdir()]
        facts_of_tensors = ((n, t.shape, t.dtype) for n, t in stored.items())
        quantized = quantized or quantized_by(config, facts_of_tensors, beside_weights)
        facts = facts_of(headers)[0] | facts
    if not tensors:
        raise ImporterError(f"{path}: no weights in the folders that {named_by} names; download it again")
    kept = {name: file for name, file in beside.kept.items() if name not in own}
    return SourceModel(
        tensors=tuple(tensors),
        assets=tuple(Asset(name, file.read_all()) for name, file in kept.items()),
        architecture="",
        source_kind=kind,
        quantized=quantized,
        files=(*own.values(), *kept.values()),
        named_files=dict(sorted({**beside.named, **own}.items())),
        weight_files=beside.weights,
        own_files=frozenset(own),
        needed=beside.needed - own.keys(),
        facts=facts,
        left_out=beside.without(own),
        coded=(lambda: tuple(tensor for part in parts for tensor in part())) if quantized else None,
    )
