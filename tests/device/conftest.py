"""Tensors of every form on a simulated device."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spqfmt.codecs.chunks import chunk_sizes, split
from spqfmt.container.encode import encode_chunk
from spqfmt.container.writer import Writer
from spqfmt.schemes.base import Encoded
from spqfmt.wire import DTYPES

# Tests import helpers of their folder, forms of tensors from tests/packed, and tools, which are scripts.
_ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [
    str(_ROOT / folder) for folder in ("tests/device", "tests/packed", "tools/gpu", "tools/models")
]


@pytest.fixture
def write_tensors(tmp_path: Path) -> Callable[..., Path]:
    """Write matrices of one form each to a file, their codes in chunks of about `chunk_bytes`."""

    def write(
        tensors: dict[str, tuple[Encoded, tuple[int, ...]]], chunk_bytes: int = 1 << 11, codec: str = "auto"
    ) -> Path:
        path = tmp_path / "tensors.spq"
        with Writer(path, 64, force=True) as writer:
            writer.begin_segment("all")
            for name, (encoded, shape) in tensors.items():
                streams = []
                for stream in encoded.streams:
                    n, bits = stream.elements.size, DTYPES[stream.dtype].bits
                    sizes = stream.sizes
                    if sizes is None or stream.role == "codes":
                        sizes = tuple(chunk_sizes(n, bits, stream.row_elements, chunk_bytes))
                    chunks = [
                        encode_chunk(part, stream.dtype, codec) for part in split(stream.elements, sizes)
                    ]
                    streams.append(({"role": stream.role, "dtype": stream.dtype, "n": n}, chunks))
                record: dict[str, Any] = {"name": name, "shape": list(shape), "dtype": "bf16", "method": ""}
                record |= {"scheme": encoded.scheme, "parameters": dict(encoded.parameters)}
                writer.add_tensor(record, streams, {})
            writer.seal({})
            writer.publish()
        return path

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
