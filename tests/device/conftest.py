"""Tensors of every form on a simulated device."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from encoded_files import write_encoded

from spqfmt.schemes.base import Encoded


@pytest.fixture
def write_tensors(tmp_path: Path) -> Callable[..., Path]:
    """Write matrices of one form each to a file, their codes in chunks of about `chunk_bytes`."""

    def write(
        tensors: dict[str, tuple[Encoded, tuple[int, ...]]], chunk_bytes: int = 1 << 11, codec: str = "auto"
    ) -> Path:
        return write_encoded(tmp_path / "tensors.spq", tensors, chunk_bytes, codec)

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


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts so small that a tiny model has many, as a large one has of the usual size."""
    monkeypatch.setattr("spqfmt.loaders.load.DEVICE_PART_BYTES", 1 << 12)
