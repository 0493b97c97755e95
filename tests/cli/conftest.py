"""A small model as its folder and packed in several ways, and the program."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from cli_models import Models
from safetensors.torch import save_file
from spq_command import Run, run

import spqfmt


@pytest.fixture(scope="session")
def spq() -> Run:
    """Runs `spqfmt ARGUMENTS` in this process."""
    return run


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Made once, not to be changed."""
    root = tmp_path_factory.mktemp("models")
    source = root / "llama"
    tiny.build("llama_tied", source)
    made = Models(
        source,
        root / "lossless.spq",
        root / "zstd.spq",
        root / "int8.spq",
        root / "int4.spq",
        root / "parts.spq.index.json",
    )
    spqfmt.pack(source, made.lossless)
    spqfmt.pack(source, made.zstd, codec="zstd")
    spqfmt.pack(source, made.int8, method="rtn", bits=8)
    spqfmt.pack(source, made.int4, method="rtn", bits=4, group_size=32)
    spqfmt.pack(source, root / "parts.spq", shard_size="60KiB")
    return made


@pytest.fixture
def edited(models: Models, tmp_path: Path) -> Callable[[dict[str, torch.Tensor | None]], Path]:
    """The source with some tensors replaced, or with None left out."""

    def edit(changes: dict[str, torch.Tensor | None]) -> Path:
        folder = tmp_path / "edited"
        shutil.copytree(models.source, folder)
        with spqfmt.open(models.lossless) as file:
            tensors = {name: file.read(name) for name in file if name not in file.tied}
        tensors |= {name: value for name, value in changes.items() if value is not None}
        kept = {name: value for name, value in tensors.items() if changes.get(name, value) is not None}
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return edit
