"""Folders of one model: weights in one file or in shards, config.json and tokenizer where they are there.

A folder as save_pretrained writes it, an adapter of peft, a checkpoint of another library, one without config.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from spqfmt.errors import ImporterError
from spqfmt.importers._beside import files_beside
from spqfmt.importers._checkpoint import (
    architecture_of,
    facts_of,
    read_headers,
    refuse_another,
    source_tensors,
)
from spqfmt.importers._folders import ADAPTER, ADAPTER_KIND, base_of_adapter
from spqfmt.importers._quantized import quantized_by
from spqfmt.importers._weight_files import weight_files
from spqfmt.importers.base import Asset, SourceModel
from spqfmt.importers.quantizers.registry import coded_tensors


class HuggingFaceImporter:
    """A folder of safetensors or torch files."""

    kind = "huggingface"

    def accepts(self, path: Path) -> bool:
        """Any folder: one without weights deserves this importer's message."""
        return path.is_dir()

    def open(self, path: Path) -> SourceModel:
        """Open a checkpoint's folder, as `Importer.open` says."""
        # As they are before any is read.
        beside = files_beside(path)
        config = read_config(path)
        weights, rival = weight_files(path, config)
        headers, stored, files = read_headers(weights)
        if rival is not None:
            refuse_another(weights, stored, rival)
        architecture = architecture_of(config)
        facts, lost = facts_of(headers)
        own = {file.path.relative_to(path).as_posix(): file for file in files}
        is_adapter = (path / ADAPTER).is_file() and not (path / "config.json").is_file()
        facts_of_tensors = ((name, t.shape, t.dtype) for name, t in stored.items())
        quantized = quantized_by(config, facts_of_tensors, beside.named)
        return SourceModel(
            tensors=source_tensors(stored, config, architecture, path),
            assets=tuple(Asset(name, file.read_all()) for name, file in beside.kept.items()),
            architecture=architecture,
            source_kind=ADAPTER_KIND if is_adapter else self.kind,
            quantized=quantized,
            files=(*files, *beside.kept.values()),
            named_files=dict(sorted({**beside.named, **own}.items())),
            weight_files=beside.weights,
            own_files=frozenset(own),
            needed=beside.needed,
            facts=facts,
            left_out=beside.without(own) | lost,
            base_model=base_of_adapter(path) if is_adapter else "",
            coded=partial(coded_tensors, stored, config, architecture, path) if quantized else None,
        )


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json as a dict; empty where there is none."""
    file = folder / "config.json"
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_bytes())
    except RecursionError:
        raise ImporterError(f"{file}: nested deeper than any config is; download the file again") from None
    except ValueError as error:
        raise ImporterError(f"{file}: not valid JSON ({error}); download the file again") from None
    if not isinstance(config, dict):
        raise ImporterError(f"{file}: not a JSON object; download the file again")
    return config


IMPORTER = HuggingFaceImporter()
