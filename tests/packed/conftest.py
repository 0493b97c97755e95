"""Tensors of every form in files of their own, and small models."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import transformers
from encoded_files import write_encoded

import spqfmt
from spqfmt.schemes.base import Encoded


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of the tiny model of a name; made once a session, not to be changed."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            tiny.build(name, made[name], dtype=torch.bfloat16)
        return made[name]

    return folder


@pytest.fixture(scope="session")
def packed_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """So many small layers that the buffers are less than all of them decoded. Not to be changed."""
    folder = tmp_path_factory.mktemp("llama")
    config = transformers.LlamaConfig(**tiny._LLAMA | {"num_hidden_layers": 12}, tie_word_embeddings=True)
    with torch.random.fork_rng(devices=[]), tiny.quiet():
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(folder)
    spqfmt.pack(folder, folder / "m.spq", method="rtn")
    return folder / "m.spq"


@pytest.fixture
def write_tensor(tmp_path: Path) -> Callable[..., Path]:
    """Write one tensor to a file, its codes in chunks of about `chunk_bytes`."""

    def write(encoded: Encoded, shape: tuple[int, ...], chunk_bytes: int = 1 << 20, **extra: Any) -> Path:
        return write_encoded(tmp_path / "tensor.spq", {"w": (encoded, shape)}, chunk_bytes, **extra)

    return write


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """torch's threads wait for each other busily: on a machine with other work that takes longer than one alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
